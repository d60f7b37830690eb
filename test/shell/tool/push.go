// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
)

// push makes an image of this very program and pushes it to http://HOST/NAME.
func push(host, name string) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		fail(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "tool", Mode: 0o755, Size: int64(len(self))}); err != nil {
		fail(err)
	}
	_, _ = w.Write(self)
	w.Close()
	at := "http://" + host + "/v2/" + name
	layerPart := blob(at, "application/vnd.oci.image.layer.v1.tar", layer.Bytes())
	config, _ := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/tool"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layerPart["digest"]}},
	})
	kind := "application/vnd.oci.image.manifest.v1+json"
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": kind,
		"config": blob(at, "application/vnd.oci.image.config.v1+json", config), "layers": []any{layerPart},
	})
	send(http.MethodPut, at+"/manifests/latest", kind, manifest)
	fmt.Println("pushed")
}

// blob uploads content and returns its descriptor.
func blob(at, kind string, content []byte) map[string]any {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
	resp := send(http.MethodPost, at+"/blobs/uploads/", "", nil)
	to, err := resp.Location()
	if err != nil {
		fail(err)
	}
	query := to.Query()
	query.Set("digest", digest)
	to.RawQuery = query.Encode()
	send(http.MethodPut, to.String(), "application/octet-stream", content)
	return map[string]any{"mediaType": kind, "digest": digest, "size": len(content)}
}

func send(method, to, kind string, content []byte) *http.Response {
	req, err := http.NewRequest(method, to, bytes.NewReader(content))
	if err != nil {
		fail(err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		fail(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		fail(fmt.Sprintf("%s %s: %s %s", method, to, resp.Status, body))
	}
	return resp
}
