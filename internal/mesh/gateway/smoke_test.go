// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"io"
	"net/http"
	"testing"
)

func TestSmoke(t *testing.T) {
	w := newWorld(t)
	w.serve("hello", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(rw, "hello "+r.Method+" "+r.URL.Path+" "+string(body))
		t.Log(r.Header)
	}))
	c := w.client()
	for range 3 {
		resp, err := c.Get("http://hello.example/a/b")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		t.Log(resp.Status, string(b), resp.Header)
	}
}
