// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/pod"
)

// maxPulls bounds the images that are pulled at the same time.
const maxPulls = 5

// ensureImage makes the image of a container present, as its pull policy says.
func (a *Agent) ensureImage(ctx context.Context, p *corev1.Pod, m *pod.Member) (image.Image, error) {
	ref, policy := m.Spec.Image, m.Spec.ImagePullPolicy
	if _, err := image.ParseRef(ref); err != nil {
		a.warn(p, m, "InspectFailed", "%v", err)
		return image.Image{}, failed(string(image.ReasonInvalidName), err)
	}
	if policy != corev1.PullAlways {
		if img, ok := a.o.Images.Find(ref); ok {
			a.note(p, m, "Pulled", "Container image %q already present on machine and can be accessed by the pod", ref)
			return img, nil
		}
	}
	if policy == corev1.PullNever {
		err := image.NeverPull(ref)
		a.warn(p, m, "ErrImageNeverPull", "%v", err)
		return image.Image{}, failed(string(image.ReasonNeverPull), err)
	}
	return a.pull(ctx, p, m)
}

func (a *Agent) pull(ctx context.Context, p *corev1.Pod, m *pod.Member) (image.Image, error) {
	ref := m.Spec.Image
	creds, err := a.pullCredentials(ctx, p)
	if err != nil {
		return image.Image{}, failed(string(image.ReasonPull), err)
	}
	a.note(p, m, "Pulling", "Pulling image %q", ref)
	begun := time.Now()
	select {
	case a.pulls <- struct{}{}:
		defer func() { <-a.pulls }()
	case <-ctx.Done():
		return image.Image{}, context.Cause(ctx)
	}
	admitted := time.Now()
	img, err := a.o.Images.Pull(ctx, ref, creds, nil)
	if err != nil {
		if ctx.Err() != nil {
			return img, context.Cause(ctx)
		}
		a.warn(p, m, "Failed", "Failed to pull image %q: %v", ref, err)
		return img, failed(string(image.ReasonOf(err)), err)
	}
	a.note(p, m, "Pulled", "Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.", ref,
		time.Since(admitted).Truncate(time.Millisecond), time.Since(begun).Truncate(time.Millisecond), img.Size)
	return img, nil
}

// pullCredentials reads the pull secrets of a pod. Those that are missing are
// told of and left out.
func (a *Agent) pullCredentials(ctx context.Context, p *corev1.Pod) (image.Credentials, error) {
	var all []image.Credentials
	var missing []string
	for _, ref := range p.Spec.ImagePullSecrets {
		s, err := a.objects.Secret(ctx, p.Namespace, ref.Name)
		if apierrors.IsNotFound(err) {
			missing = append(missing, ref.Name)
			continue
		}
		if err != nil {
			return image.Credentials{}, err
		}
		c, err := credentialsOf(s)
		if err != nil {
			return image.Credentials{}, fmt.Errorf("pull secret %s: %w", ref.Name, err)
		}
		all = append(all, c)
	}
	if len(missing) > 0 {
		a.warn(p, nil, "FailedToRetrieveImagePullSecret",
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", "))
	}
	return image.Join(all...), nil
}

func credentialsOf(s *corev1.Secret) (image.Credentials, error) {
	if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
		return image.ParseDockerConfigJSON(data)
	}
	if data, ok := s.Data[corev1.DockerConfigKey]; ok {
		return image.ParseDockerCfg(data)
	}
	return image.Credentials{}, nil
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Images are collected when they are not used for this long, or when the disk
// fills up: then from the high mark down to the low one.
const (
	imageMinAge   = 2 * time.Minute
	imageHighMark = 85
	imageLowMark  = 80
	collectEvery  = 5 * time.Minute
)

// collectImages removes images that no pod uses.
func (a *Agent) collectImages(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		used := map[string]bool{}
		for _, p := range a.Pods() {
			for _, m := range pod.Members(p) {
				used[m.Spec.Image] = true
			}
		}
		got, err := a.o.Images.Collect(ctx, image.CollectOptions{
			InUse:  func(i image.Image) bool { return a.usesImage(i, used) },
			MinAge: imageMinAge, HighPercent: imageHighMark, LowPercent: imageLowMark,
		})
		if err != nil && ctx.Err() == nil {
			a.log.Warn("images not collected", "err", err)
		}
		if len(got.Images) > 0 {
			a.log.Info("images collected", "images", len(got.Images), "bytes", got.Bytes)
		}
	}
}

func (a *Agent) usesImage(i image.Image, used map[string]bool) bool {
	for ref := range used {
		if img, ok := a.o.Images.Find(ref); ok && img.ID == i.ID {
			return true
		}
	}
	return false
}
