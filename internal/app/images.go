// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/sonagi/sonagi/internal/node/image"
)

// An imageRow is what "sonagi image list" shows of an image.
type imageRow struct {
	ID      string    `json:"id"`
	Refs    []string  `json:"refs"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

func imageRowOf(i image.Image) imageRow {
	return imageRow{ID: i.ID, Refs: append(i.Tags(), i.Digests()...), Size: i.Size, Created: i.Created}
}

// imagesHandler serves the verbs of "sonagi image" on node's socket.
func imagesHandler(store *image.Store) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /images", func(w http.ResponseWriter, _ *http.Request) {
		rows := []imageRow{}
		for _, i := range store.List() {
			rows = append(rows, imageRowOf(i))
		}
		_ = json.NewEncoder(w).Encode(rows)
	})
	// The path is read by node itself, which runs as the same user: a large archive is not copied through the socket.
	mux.HandleFunc("POST /images", func(w http.ResponseWriter, r *http.Request) {
		loaded, err := store.Load(r.Context(), r.URL.Query().Get("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		rows := []imageRow{}
		for _, i := range loaded {
			rows = append(rows, imageRowOf(i))
		}
		_ = json.NewEncoder(w).Encode(rows)
	})
	mux.HandleFunc("DELETE /images", func(w http.ResponseWriter, r *http.Request) {
		if err := store.Remove(r.Context(), r.URL.Query().Get("ref")); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	return mux
}

// askNode sends a request to node's socket and decodes the answer into rows, if there is one.
func askNode(ctx context.Context, s Settings, method, path string, rows *[]imageRow) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, nil)
	if err != nil {
		return err
	}
	resp, err := overUnix(s.nodeSocket()).Do(req)
	if err != nil {
		return fmt.Errorf("%w (%w)", errNotUp, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return errors.New(string(text))
	}
	if rows == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(rows)
}

// ListImages prints the images that are unpacked on this machine.
func ListImages(ctx context.Context, s Settings, out io.Writer) error {
	var rows []imageRow
	if err := askNode(ctx, s, http.MethodGet, "/images", &rows); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tSIZE")
	for _, r := range rows {
		name := "<none>"
		if len(r.Refs) > 0 {
			name = r.Refs[0]
		}
		fmt.Fprintf(w, "%s\t%.19s\t%.1f MB\n", name, r.ID, float64(r.Size)/1e6)
	}
	return w.Flush()
}

// LoadImages loads layouts and archives.
func LoadImages(ctx context.Context, s Settings, paths []string, out io.Writer) error {
	for _, path := range paths {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return err
		}
		var rows []imageRow
		if err := askNode(ctx, s, http.MethodPost, "/images?path="+url.QueryEscape(abs), &rows); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
		for _, r := range rows {
			fmt.Fprintf(out, "Loaded %s %v\n", r.ID, r.Refs)
		}
	}
	return nil
}

// RemoveImages removes images by name, digest or id.
func RemoveImages(ctx context.Context, s Settings, refs []string, out io.Writer) error {
	for _, ref := range refs {
		if err := askNode(ctx, s, http.MethodDelete, "/images?ref="+url.QueryEscape(ref), nil); err != nil {
			return fmt.Errorf("remove %s: %w", ref, err)
		}
		fmt.Fprintf(out, "Removed %s\n", ref)
	}
	return nil
}
