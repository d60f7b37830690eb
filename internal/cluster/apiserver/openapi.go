// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emicklei/go-restful/v3"
	crdhelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	listers "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	crdbuilder "k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/kube-openapi/pkg/builder"
	openapi "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// keepDescribed is how long a document is kept for the next who asks. A
// kubectl command asks for a handful within a second, and then nobody does.
const keepDescribed = time.Minute

const (
	pathV2 = "/openapi/v2"
	pathV3 = "/openapi/v3"
)

// A describer serves the OpenAPI documents of built-in and custom kinds.
//
// Upstream makes all of them at the start and keeps them: some forty
// megabytes and a third of the time until ready, for what clients ask for
// once in a while, and then only for the group they work with. Here a document is
// made when it is asked for. The index names each with a hash of what
// it is made from, so clients keep what they have as long as it is right.
//
// Documents of aggregated servers are not merged in.
type describer struct {
	v2       *openapi.Config
	v3       *openapi.OpenAPIV3Config
	services map[string]*restful.WebService // by root path without its first slash
	custom   listers.CustomResourceDefinitionLister
	program  string

	mutex sync.Mutex // one document is made at a time
	made  map[string]document
	drop  *time.Timer
}

// A document is a handler that serves what was made from inputs with a stamp.
type document struct {
	stamp   string
	handler http.Handler
}

func webServices(layers ...*server.GenericAPIServer) map[string]*restful.WebService {
	all := map[string]*restful.WebService{}
	for _, layer := range layers {
		for _, service := range layer.Handler.GoRestfulContainer.RegisteredWebServices() {
			path := strings.Trim(service.RootPath(), "/")
			if all[path] == nil { // the front layer answers
				all[path] = service
			}
		}
	}
	return all
}

func (d *describer) install(m *mux.PathRecorderMux) {
	// What the start made from types is only needed again to describe them.
	d.v3.Definitions = nil
	d.made = map[string]document{}
	m.Unregister(pathV3)
	m.Unregister(pathV3 + "/")
	m.Handle(pathV2, http.HandlerFunc(d.swagger))
	m.Handle(pathV3, http.HandlerFunc(d.index))
	m.HandlePrefix(pathV3+"/", http.HandlerFunc(d.group))
}

// index lists the documents there are.
func (d *describer) index(w http.ResponseWriter, r *http.Request) {
	stamps, err := d.stamps()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	paths := map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}
	for path, stamp := range stamps {
		at := url.URL{Path: pathV3 + "/" + path, RawQuery: url.Values{"hash": {stamp}}.Encode()}
		paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: at.String()}
	}
	body, err := json.Marshal(handler3.OpenAPIV3Discovery{Paths: paths})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Etag", strconv.Quote(digest(string(body))))
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, pathV3, time.Time{}, bytes.NewReader(body))
}

// group serves the document of one group and version.
func (d *describer) group(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, pathV3+"/")
	stamps, err := d.stamps()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	stamp, known := stamps[path]
	if !known {
		http.NotFound(w, r)
		return
	}
	h, err := d.document(path, stamp, func() (http.Handler, error) { return d.describeGroup(path) })
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	asked := r.URL.Query()
	if hash := asked.Get("hash"); hash != "" && hash != stamp {
		asked.Set("hash", stamp)
		http.Redirect(w, r, r.URL.Path+"?"+asked.Encode(), http.StatusMovedPermanently)
		return
	} else if hash != "" {
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
	}
	// Upstream's handler would compare the hash with one of its own.
	asked.Del("hash")
	inner := r.Clone(r.Context())
	inner.URL.RawQuery = asked.Encode()
	h.ServeHTTP(w, inner)
}

// swagger serves everything in one document, for clients from before version 3.
func (d *describer) swagger(w http.ResponseWriter, r *http.Request) {
	crds, err := d.established()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var stamp strings.Builder
	for _, crd := range crds {
		stamp.WriteString(identity(crd))
	}
	h, err := d.document(pathV2, digest(stamp.String()), func() (http.Handler, error) { return d.describeAll(crds) })
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.ServeHTTP(w, r)
}

// document returns the one that is kept, or makes it.
func (d *describer) document(name, stamp string, make func() (http.Handler, error)) (http.Handler, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.drop != nil {
		d.drop.Stop()
	}
	d.drop = time.AfterFunc(keepDescribed, d.forget)
	if have, ok := d.made[name]; ok && have.stamp == stamp {
		return have.handler, nil
	}
	h, err := make()
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", name, err)
	}
	d.made[name] = document{stamp, h}
	return h, nil
}

func (d *describer) forget() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	clear(d.made)
	d.v3.Definitions = nil
}

func (d *describer) describeGroup(path string) (http.Handler, error) {
	if service := d.services[path]; service != nil {
		if d.v3.Definitions == nil {
			d.v3.Definitions = d.v3.GetDefinitions(d.reference)
		}
		alone := restful.NewContainer()
		alone.Add(service)
		built := routes.OpenAPI{V3Config: d.v3}.InstallV3(alone, mux.NewPathRecorderMux("openapi"))
		return http.HandlerFunc(built.HandleGroupVersion), nil
	}
	crds, err := d.established()
	if err != nil {
		return nil, err
	}
	var specs []*spec3.OpenAPI
	for _, crd := range crds {
		for _, version := range servedBy(crd) {
			if groupPath(crd, version) != path {
				continue
			}
			one, err := crdbuilder.BuildOpenAPIV3(crd, version, crdbuilder.Options{IncludeSelectableFields: true})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", crd.Name, err)
			}
			specs = append(specs, one)
		}
	}
	merged, err := crdbuilder.MergeSpecsV3(specs...)
	if err != nil {
		return nil, err
	}
	built := handler3.NewOpenAPIService()
	built.UpdateGroupVersion(path, merged)
	return http.HandlerFunc(built.HandleGroupVersion), nil
}

func (d *describer) reference(name string) spec.Ref {
	short, _ := d.v3.GetDefinitionName(name)
	return spec.MustCreateRef("#/components/schemas/" + openapi.EscapeJsonPointer(short))
}

func (d *describer) describeAll(crds []*apiextensionsv1.CustomResourceDefinition) (http.Handler, error) {
	services := make([]*restful.WebService, 0, len(d.services))
	for _, service := range d.services {
		services = append(services, service)
	}
	static, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services), d.v2)
	if err != nil {
		return nil, err
	}
	static.Definitions = handler.PruneDefaults(static.Definitions)
	var specs []*spec.Swagger
	for _, crd := range crds {
		for _, version := range servedBy(crd) {
			one, err := crdbuilder.BuildOpenAPIV2(crd, version, crdbuilder.Options{V2: true, IncludeSelectableFields: true})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", crd.Name, err)
			}
			specs = append(specs, one)
		}
	}
	merged, err := crdbuilder.MergeSpecs(static, specs...)
	if err != nil {
		return nil, err
	}
	m := mux.NewPathRecorderMux("openapi")
	handler.NewOpenAPIService(merged).RegisterOpenAPIVersionedService(pathV2, m)
	return m, nil
}

// stamps names every document and the state of its inputs. Built-in kinds
// change with the program; custom ones with their definition.
func (d *describer) stamps() (map[string]string, error) {
	all := make(map[string]string, len(d.services))
	for path := range d.services {
		all[path] = digest(d.program + path)
	}
	crds, err := d.established()
	if err != nil {
		return nil, err
	}
	inputs := map[string]string{}
	for _, crd := range crds {
		for _, version := range servedBy(crd) {
			inputs[groupPath(crd, version)] += identity(crd)
		}
	}
	for path, input := range inputs {
		all[path] = digest(input)
	}
	return all, nil
}

// thisProgram tells one build of this program from another.
func thisProgram() (string, error) {
	info, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	return fmt.Sprint(info.Size(), info.ModTime().UnixNano()), nil
}

// established are the definitions in force, in the order of their names.
func (d *describer) established() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	all, err := d.custom.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(crd *apiextensionsv1.CustomResourceDefinition) bool {
		return !crdhelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established)
	})
	slices.SortFunc(all, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func servedBy(crd *apiextensionsv1.CustomResourceDefinition) []string {
	var versions []string
	for _, v := range crd.Spec.Versions {
		if v.Served {
			versions = append(versions, v.Name)
		}
	}
	return versions
}

func groupPath(crd *apiextensionsv1.CustomResourceDefinition, version string) string {
	return "apis/" + crd.Spec.Group + "/" + version
}

func identity(crd *apiextensionsv1.CustomResourceDefinition) string {
	return fmt.Sprintf("%s %s %d;", crd.Name, crd.UID, crd.Generation)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}
