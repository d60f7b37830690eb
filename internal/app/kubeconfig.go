// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// contextName is the context, cluster and user that are added to a person's kubeconfig.
const contextName = "sonagi"

// mergeKubeconfig adds the administrator's credentials to the kubeconfig of the
// person who started the platform (before sudo), as context "sonagi", and
// makes it current only if there was no current context. It returns the file.
func mergeKubeconfig(s Settings) (string, error) {
	ours, err := clientcmd.LoadFromFile(s.Kubeconfig())
	if err != nil {
		return "", fmt.Errorf("merge kubeconfig: %w", err)
	}
	path, owner, err := userKubeconfig()
	if err != nil {
		return "", fmt.Errorf("merge kubeconfig: %w", err)
	}
	theirs, err := clientcmd.LoadFromFile(path)
	if os.IsNotExist(err) {
		theirs, err = clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return "", fmt.Errorf("merge into %s: %w", path, err)
	}
	from := ours.Contexts[ours.CurrentContext]
	if from == nil {
		return "", fmt.Errorf("merge kubeconfig: %s has no current context", s.Kubeconfig())
	}
	theirs.Clusters[contextName] = ours.Clusters[from.Cluster]
	theirs.AuthInfos[contextName] = ours.AuthInfos[from.AuthInfo]
	theirs.Contexts[contextName] = &clientcmdapi.Context{Cluster: contextName, AuthInfo: contextName}
	theirs.CurrentContext = cmp.Or(theirs.CurrentContext, contextName)
	if err := clientcmd.WriteToFile(*theirs, path); err != nil {
		return "", fmt.Errorf("merge into %s: %w", path, err)
	}
	if owner != nil {
		uid, _ := strconv.Atoi(owner.Uid)
		gid, _ := strconv.Atoi(owner.Gid)
		for _, p := range []string{filepath.Dir(path), path} {
			if err := os.Chown(p, uid, gid); err != nil {
				return "", fmt.Errorf("merge kubeconfig: %w", err)
			}
		}
	}
	return path, nil
}

// userKubeconfig is the file kubectl would use for the person at the keyboard;
// owner is that person if sudo hides them.
func userKubeconfig() (path string, owner *user.User, err error) {
	if name := os.Getenv("SUDO_USER"); name != "" {
		owner, err = user.Lookup(name)
		if err != nil {
			return "", nil, err
		}
		return filepath.Join(owner.HomeDir, ".kube", "config"), owner, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(home, ".kube", "config"), nil, nil
}
