// SPDX-License-Identifier: Apache-2.0

// Package kncli runs upstream's kn against the platform, command by command, and holds what
// it prints to what it prints for Knative.
package kncli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

// A step is one command line and what it must print. Runs of spaces count as one, and ages
// and times as <t>; each want is a part of the output.
type step struct {
	line string
	want string // lines
	not  string // one line that must be missing
	fail bool
}

// A script is run in one namespace, whose name stands for $NS; $IMAGE is the app, $URL(x) the
// URL of service x, $DIR a directory.
type script struct {
	t    *testing.T
	ns   string
	dir  string
	vars *strings.Replacer
}

func newScript(t *testing.T, ns string) *script {
	t.Helper()
	s := &script{t: t, ns: p.Space(t, ns).Name, dir: t.TempDir()}
	s.vars = strings.NewReplacer("$NS", ns, "$IMAGE", p.App(), "$DIR", s.dir, "$DOMAIN", fmt.Sprintf("%s.%s:%d", ns, p.Domain, p.GatewayPort), "$PORT", fmt.Sprint(p.GatewayPort), "$SECURE", fmt.Sprint(p.SecurePort))
	return s
}

func (s *script) run(steps ...step) {
	s.t.Helper()
	for _, one := range steps {
		line := s.vars.Replace(one.line)
		out, err := p.Run(s.t.Context(), "sh", "-c", fmt.Sprintf("export PATH=%s:$PATH NS=%s; %s", filepath.Join(p.Root, "bin"), s.ns, line))
		if testing.Verbose() {
			s.t.Logf("$ %s\n%s", line, out)
		}
		if (err != nil) != one.fail {
			s.t.Errorf("$ %s\n%v", line, err)
			continue
		}
		plain := tidy(out)
		for want := range strings.Lines(s.vars.Replace(one.want)) {
			if want = tidy(want); want != "" && !strings.Contains(plain, want) {
				s.t.Errorf("$ %s\n%q is missing in:\n%s", line, want, plain)
			}
		}
		if one.not != "" && strings.Contains(plain, tidy(s.vars.Replace(one.not))) {
			s.t.Errorf("$ %s\n%q is in:\n%s", line, one.not, plain)
		}
	}
}

var (
	spaces = regexp.MustCompile(`[ \t]+`)
	times  = regexp.MustCompile(`\b\d+(\.\d+)?(ms|s|m|h)(\d+s)?\b`)
)

// tidy makes one of two outputs that mean the same.
func tidy(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		line = times.ReplaceAllString(strings.TrimSpace(spaces.ReplaceAllString(line, " ")), "<t>")
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestKn(t *testing.T) {
	if err := p.DeployApp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func(*script){
		"service": service, "traffic": traffic, "apply": apply, "exports": exports, "files": files,
		"domain": domain, "containers": containers, "options": options, "failures": failures, "others": others,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(newScript(t, "kn-"+name))
		})
	}
}

const (
	insecure = "Warning: Kubernetes default value is insecure, Knative may default this to secure in a future release:"
	allWell  = `
			Conditions:
			OK TYPE AGE REASON
			++ Ready <t>
			++ ConfigurationsReady <t>
			++ RoutesReady <t>`
)

func service(s *script) {
	s.run(
		step{line: "kn service list -n $NS", want: "No services found."},
		step{line: "kn service create hello --image $IMAGE --env RESPONSE=one --label team=a --annotation example.org/note=b --concurrency-limit 10 --request cpu=10m -n $NS", want: insecure + `
			Creating service 'hello' in namespace '$NS':
			<t> Ready to serve.
			Service 'hello' created to latest revision 'hello-00001' is available at URL:
			http://hello.$DOMAIN`},
		step{line: "kn service create hello --image $IMAGE -n $NS", fail: true, want: "Error: cannot create service 'hello' in namespace '$NS' because the service already exists and no --force option was given"},
		step{line: "kn service list -n $NS", want: `
			NAME URL LATEST AGE CONDITIONS READY REASON
			hello http://hello.$DOMAIN hello-00001 <t> 3 OK / 3 True`},
		step{line: "kn service list hello -n $NS --no-headers", want: "hello http://hello.$DOMAIN hello-00001 <t> 3 OK / 3 True", not: "NAME"},
		step{line: "kn service list none -n $NS", want: "No services found."},
		step{line: "kn service list -A", want: `
			NAMESPACE NAME URL LATEST AGE CONDITIONS READY REASON
			$NS hello http://hello.$DOMAIN hello-00001 <t> 3 OK / 3 True`},
		step{line: "kn service list -n $NS -o name", want: "service.serving.knative.dev/hello"},
		step{line: "kn service list -n $NS -o jsonpath='{.items[*].metadata.name}'", want: "hello"},
		step{line: "kn service list -n $NS -o json", want: "\"kind\": \"ServiceList\"\n\"latestReadyRevisionName\": \"hello-00001\""},
		step{line: "kn service list -n $NS -o yaml", want: "kind: ServiceList\nclient.knative.dev/user-image: $IMAGE"},
		step{line: "kn service describe hello -n $NS", want: `
			Name: hello
			Namespace: $NS
			Labels: team=a
			Annotations: example.org/note=b
			URL: http://hello.$DOMAIN
			100% @latest (hello-00001) [1] (<t>)
			Image: $IMAGE (pinned to
			Replicas: 1/1` + allWell},
		step{line: "kn service describe hello -n $NS -v", want: `
			serving.knative.dev/creator=sonagi:admin
			Cluster: http://hello.$NS.svc.cluster.local
			Env: RESPONSE=one
			Limit: 10
			CPU: 10m` + allWell},
		step{line: "kn service describe hello -n $NS -o url", want: "http://hello.$DOMAIN"},
		step{line: "kn service describe hello -n $NS -o yaml", want: "kind: Service\nlatestReadyRevisionName: hello-00001"},
		step{line: "kn service describe hello -n $NS -o jsonpath='{.status.address.url}'", want: "http://hello.$NS.svc.cluster.local"},
		step{line: "kn service describe none -n $NS", fail: true, want: "Error: services.serving.knative.dev \"none\" not found"},
		step{line: "kn service update hello --env RESPONSE=two -n $NS", want: `
			Updating Service 'hello' in namespace '$NS':
			<t> Ready to serve.
			Service 'hello' updated to latest revision 'hello-00002' is available at URL:
			http://hello.$DOMAIN`},
		step{line: "kn service update hello --label team- --annotation example.org/note- -n $NS", want: "Service 'hello' updated to latest revision 'hello-00003' is available at URL:"},
		step{line: "kn service describe hello -n $NS", want: "100% @latest (hello-00003) [3] (<t>)", not: "team=a"},
		step{line: "kn service update none --env A=b -n $NS", fail: true, want: "Error: services.serving.knative.dev \"none\" not found"},
		step{line: "kn service create hello --force --image $IMAGE --env RESPONSE=forced -n $NS", want: `
			Replacing service 'hello' in namespace '$NS':
			Service 'hello' replaced to latest revision 'hello-00004' is available at URL:`},
		step{line: "curl -s -H \"Host: $(kn service describe hello -n $NS -o url | sed 's#http://##')\" http://127.0.0.1:$PORT", want: "forced"},
		step{line: "kn service wait hello -n $NS --wait-timeout 30", want: `
			Waiting for Service 'hello' in namespace '$NS':
			Ready to serve.
			Service 'hello' in namespace '$NS' is ready.`},
		step{line: "kn service delete hello -n $NS", want: "Service 'hello' successfully deleted in namespace '$NS'."},
		step{line: "kn service delete hello -n $NS", fail: true, want: "Error: services.serving.knative.dev \"hello\" not found"},
		step{line: "kn service create one --image $IMAGE --no-wait -n $NS", want: "Service 'one' created in namespace '$NS'."},
		step{line: "kn service create two --image $IMAGE --no-wait -n $NS", want: "Service 'two' created in namespace '$NS'."},
		step{line: "kn service delete one two -n $NS --wait", want: "Service 'one' successfully deleted in namespace '$NS'.\nService 'two' successfully deleted in namespace '$NS'."},
		step{line: "kn service create three --image $IMAGE --no-wait -n $NS; kn service delete --all -n $NS", want: "Service 'three' successfully deleted in namespace '$NS'."},
		step{line: "kubectl -n $NS wait --for=delete --timeout=30s configuration,route,revision,deployment --all; kubectl -n $NS get configuration,route,revision", want: "No resources found in $NS namespace."},
	)
}

func traffic(s *script) {
	s.run(
		step{line: "kn service create web --image $IMAGE --env RESPONSE=one --revision-name web-a -n $NS", want: "Service 'web' created to latest revision 'web-a' is available at URL:"},
		step{line: "kn service update web --env RESPONSE=two --revision-name web-b --traffic web-a=60,@latest=40 --tag web-a=blue,@latest=green -n $NS", want: "Service 'web' updated to latest revision 'web-b' is available at URL:"},
		step{line: "kn service describe web -n $NS", want: `
			40% @latest (web-b) #green [2] (<t>)
			60% web-a #blue [1] (<t>)` + allWell},
		step{line: "kn revision list -n $NS", want: `
			NAME SERVICE TRAFFIC TAGS GENERATION AGE CONDITIONS READY REASON
			web-b web 40% green 2 <t> 4 OK / 4 True
			web-a web 60% blue 1 <t> 4 OK / 4 True`},
		step{line: "kn revision list -s web -n $NS -o jsonpath='{.items[*].metadata.name}'", want: "web-b web-a"},
		step{line: "kn revision list -s none -n $NS", fail: true, want: "Error: services.serving.knative.dev \"none\" not found"},
		step{line: "kn revision describe web-a -n $NS", want: `
			Name: web-a
			Namespace: $NS
			Image: $IMAGE (pinned to
			Replicas: 1/1
			Env: RESPONSE=one
			Service: web
			++ Ready <t>
			++ ContainerHealthy <t>
			++ ResourcesAvailable <t>
			++ Active <t>`},
		step{line: "kn revision describe web-a -n $NS -v", want: `
			Labels: serving.knative.dev/configuration=web
			serving.knative.dev/routingState=active
			Configuration Generation: 1
			Latest Created: false
			Latest Ready: false
			Traffic: 60%
			Tags: blue`},
		step{line: "kn revision describe web-a -n $NS -o yaml", want: "kind: Revision\nserving.knative.dev/routingState: active\nactualReplicas: 1"},
		step{line: "kn route list -n $NS", want: `
			NAME URL READY
			web http://web.$DOMAIN True`},
		step{line: "kn route list none -n $NS", want: "No routes found."},
		step{line: "kn route describe web -n $NS", want: `
			URL: http://web.$DOMAIN
			Service: web
			40% @latest (web-b) #green
			URL: http://green-web.$DOMAIN
			60% web-a #blue
			URL: http://blue-web.$DOMAIN
			++ AllTrafficAssigned <t>
			++ CertificateProvisioned <t> TLSNotEnabled
			++ IngressReady <t>`},
		step{line: "kn route describe web -n $NS -o jsonpath='{.status.traffic[0].percent}'", want: "40"},
		step{line: "kn route describe none -n $NS", fail: true, want: "Error: routes.serving.knative.dev \"none\" not found"},
		step{line: "kn service update web --traffic web-a=101 -n $NS", fail: true, want: "Error: invalid value for traffic percent 101, expected 0 <= percent <= 100"},
		step{line: "kn service update web --traffic web-a=50,web-b=60 -n $NS", fail: true, want: "Error: given traffic percents sum to 110, want <=100"},
		step{line: "kn service update web --traffic web-a=50 -n $NS", want: "Service 'web' with latest revision 'web-b' (unchanged) is available at URL:"},
		step{line: "kn service update web --tag web-a=blue,web-b=blue -n $NS", fail: true, want: "Error: refusing to overwrite existing tag in service, add flag '--untag blue' in command to untag it"},
		step{line: "kn service update web --traffic none=100 --wait-timeout 10 -n $NS", fail: true, want: "Error: RevisionMissing: Revision \"none\" referenced in traffic not found."},
		step{line: "kn service update web --untag blue --untag green --traffic web-b=100 -n $NS", want: "Service 'web' with latest revision 'web-b' (unchanged) is available at URL:"},
		step{line: "kn revision list -n $NS --no-headers", want: "web-b web 100% 2 <t> 4 OK / 4 True\nweb-a web 1 <t>"},
		step{line: "kn revision delete web-a -n $NS --wait", want: "Revision 'web-a' deleted in namespace '$NS'."},
		step{line: "kn service update web --env RESPONSE=three -n $NS", fail: true, want: "denied the request: validation failed: Saw the following changes without a name change (-old +new): spec.template.metadata.name"},
		step{line: "kn service update web --env RESPONSE=three --revision-name '{{.Service}}-c' --traffic @latest=100 -n $NS", want: "Service 'web' updated to latest revision 'web-c' is available at URL:"},
		step{line: "kn revision delete --prune web -n $NS", want: "Revision 'web-b' deleted in namespace '$NS'."},
		step{line: "kn revision delete --prune-all -n $NS", want: "No unreferenced revisions found."},
		step{line: "kn revision delete none -n $NS", fail: true, want: "Error: revisions.serving.knative.dev \"none\" not found"},
	)
}

func apply(s *script) {
	s.run(
		step{line: "kn service apply web --image $IMAGE --env RESPONSE=one -n $NS", want: `
			Creating service 'web' in namespace '$NS':
			<t> Ready to serve.
			Service 'web' created to latest revision 'web-00001' is available at URL:
			http://web.$DOMAIN`},
		step{line: "kn service apply web --image $IMAGE --env RESPONSE=one -n $NS", want: `
			No changes to apply to service 'web'.
			Service 'web' with latest revision 'web-00001' (unchanged) is available at URL:`},
		step{line: "kn service apply web --image $IMAGE --env RESPONSE=two -n $NS", want: `
			Applying service 'web' in namespace '$NS':
			Service 'web' applied to latest revision 'web-00002' is available at URL:`},
		step{line: "kn service apply web --image $IMAGE -n $NS", want: "Service 'web' applied to latest revision 'web-00003' is available at URL:"},
		step{line: "kn service describe web -n $NS -o jsonpath='{.spec.template.spec.containers[0]}'", want: "$IMAGE", not: "RESPONSE"},
		step{line: "kn revision list -n $NS --no-headers", want: "web-00003 web 100% 3 <t> 4 OK / 4 True\nweb-00002 web 2 <t>\nweb-00001 web 1 <t>"},
		step{line: "kn service apply web -n $NS", fail: true, want: "Error: 'service apply' requires the image name to run provided with the --image option"},
	)
}

func exports(s *script) {
	s.run(
		step{line: "kn service create web --image $IMAGE --env RESPONSE=one --revision-name web-a -n $NS", want: "Service 'web' created to latest revision 'web-a'"},
		step{line: "kn service update web --env RESPONSE=two --revision-name web-b --traffic web-a=50,web-b=50 -n $NS", want: "Service 'web' updated to latest revision 'web-b'"},
		step{line: "kn service export web -n $NS -o yaml", want: "kind: Export\nname: web-b\nvalue: two", not: "value: one"},
		step{line: "kn service export web -n $NS -o json", want: "\"kind\": \"Export\"\n\"apiVersion\": \"client.knative.dev/v1alpha1\""},
		step{line: "kn service export web -n $NS", fail: true, want: "Error: 'kn service export' requires output format"},
		step{line: "kn service export web --with-revisions --mode replay -n $NS -o yaml", want: "kind: List\nname: web-a\nname: web-b\nvalue: one\nvalue: two"},
		step{line: "kn service export web --with-revisions --mode export -n $NS -o yaml > $DIR/web.yaml && cat $DIR/web.yaml", want: `
			apiVersion: client.knative.dev/v1alpha1
			kind: Export
			kind: Revision
			serving.knative.dev/configurationGeneration: "1"
			name: web-a
			revisionName: web-b`},
		step{line: "kn service delete web -n $NS --wait", want: "Service 'web' successfully deleted in namespace '$NS'."},
		step{line: "kn service import $DIR/web.yaml -n $NS", want: `
			Importing service 'web' in namespace '$NS':
			Ready to serve.
			Service 'web' imported`},
		step{line: "kn service describe web -n $NS", want: "50% web-b (current @latest) [1] (<t>)\n50% web-a [1] (<t>)" + allWell},
		step{line: "for i in 1 2 3 4; do curl -s -H 'Host: web.'$(echo $DOMAIN | sed s/:.*//) http://127.0.0.1:$PORT; echo; done", want: "one\ntwo"},
		step{line: "kn service import $DIR/web.yaml -n $NS", fail: true, want: "Error: cannot import service 'web' in namespace '$NS' because the service already exists"},
		step{line: "kn service import $DIR/none.yaml -n $NS", fail: true, want: "no such file or directory"},
	)
}

func files(s *script) {
	s.run(
		step{line: "kn service create web --image $IMAGE --env RESPONSE=file --target $DIR -n $NS", want: "Service 'web' created in namespace '$NS'."},
		step{line: "cat $DIR/$NS/ksvc/web.yaml", want: "kind: Service\nvalue: file"},
		step{line: "kn service list --target $DIR -n $NS", want: "NAME URL LATEST AGE CONDITIONS READY REASON\nweb"},
		step{line: "kn service create web -f $DIR/$NS/ksvc/web.yaml -n $NS", want: "Service 'web' created to latest revision 'web-00001' is available at URL:"},
		step{line: "kn service apply web -f $DIR/$NS/ksvc/web.yaml -n $NS", want: "Warning: 'kn service apply' should be used only for services created by 'kn service apply'\nis available at URL:"},
		step{line: "kn service delete web --target $DIR -n $NS && ls $DIR/$NS/ksvc", want: "Service 'web' successfully deleted in namespace '$NS'.", not: "web.yaml"},
	)
}

func domain(s *script) {
	s.run(
		step{line: "kn service create web --image $IMAGE -n $NS", want: "Service 'web' created to latest revision 'web-00001'"},
		step{line: "kn domain list -n $NS", want: "No domain mapping found."},
		step{line: "kn domain create kn.example.org --ref web -n $NS", want: "Domain mapping 'kn.example.org' created in namespace '$NS'."},
		step{line: "kubectl -n $NS wait --for=condition=Ready=False --timeout=30s dm/kn.example.org", want: "condition met"},
		step{line: "kn domain list -n $NS", want: "NAME URL READY KSVC\nkn.example.org http://kn.example.org:$PORT False web"},
		step{line: "kn domain describe kn.example.org -n $NS", want: "!! Ready <t> DomainAlreadyClaimed\n!! DomainClaimed <t> DomainAlreadyClaimed"},
		step{line: `printf 'apiVersion: networking.internal.knative.dev/v1alpha1\nkind: ClusterDomainClaim\nmetadata: {name: kn.example.org}\nspec: {namespace: $NS}\n' | kubectl apply -f -`, want: "created"},
		step{line: "kubectl -n $NS wait --for=condition=Ready --timeout=30s dm/kn.example.org", want: "condition met"},
		step{line: "kn domain create kn.example.org --ref web -n $NS", fail: true, want: "Error: domainmappings.serving.knative.dev \"kn.example.org\" already exists"},
		step{line: "kn domain create other.example.org --ref ksvc:none -n $NS", fail: true, want: "Error: services.serving.knative.dev \"none\" not found"},
		step{line: "kn domain list -n $NS", want: "NAME URL READY KSVC\nkn.example.org http://kn.example.org:$PORT True web"},
		step{line: "kn domain list -n $NS -o jsonpath='{.items[*].metadata.name}'", want: "kn.example.org"},
		step{line: "kn domain describe kn.example.org -n $NS", want: `
			Name: kn.example.org
			URL: http://kn.example.org:$PORT
			APIVersion: serving.knative.dev/v1
			Kind: Service
			Name: web
			++ Ready <t>
			++ CertificateProvisioned <t> TLSNotEnabled
			++ DomainClaimed <t>
			++ IngressReady <t>
			++ ReferenceResolved <t>`},
		step{line: "kn domain describe kn.example.org -n $NS -o url", want: "http://kn.example.org:$PORT"},
		step{line: "kn domain describe kn.example.org -n $NS -o yaml", want: "kind: DomainMapping\nname: kn.example.org"},
		step{line: "curl -s -H 'Host: kn.example.org' http://127.0.0.1:$PORT", want: "web-00001"},
		step{line: "kn service create other --image $IMAGE -n $NS", want: "Service 'other' created"},
		step{line: "kn domain update kn.example.org --ref kroute:other -n $NS", want: "Domain mapping 'kn.example.org' updated in namespace '$NS'."},
		step{line: "kubectl -n $NS wait --for=jsonpath='{.status.observedGeneration}'=2 --timeout=30s dm/kn.example.org && kubectl -n $NS wait --for=condition=Ready --timeout=30s dm/kn.example.org", want: "condition met"},
		step{line: "curl -s -H 'Host: kn.example.org' http://127.0.0.1:$PORT", want: "other-00001"},
		step{line: "kn domain update kn.example.org --ref ksvc:none -n $NS", fail: true, want: "Error: services.serving.knative.dev \"none\" not found"},
		step{line: "kn domain create nodots --ref web -n $NS", fail: true, want: "denied the request: validation failed: invalid name \"nodots\""},
		step{line: "kn domain create tls.example.org --ref web --tls mine -n $NS", want: "Domain mapping 'tls.example.org' created in namespace '$NS'."},
		step{line: "kubectl -n $NS get dm tls.example.org -o jsonpath='{.spec.tls.secretName}'", want: "mine"},
		step{line: "kn domain delete kn.example.org -n $NS", want: "Domain mapping 'kn.example.org' deleted in namespace '$NS'."},
		step{line: "kubectl -n $NS wait --for=delete --timeout=30s dm/kn.example.org; kn domain delete kn.example.org -n $NS", fail: true, want: "Error: domainmappings.serving.knative.dev \"kn.example.org\" not found"},
		step{line: "kn domain describe kn.example.org -n $NS", fail: true, want: "Error: domainmappings.serving.knative.dev \"kn.example.org\" not found"},
	)
}

func containers(s *script) {
	s.run(
		step{line: "kn container add helper --image $IMAGE --env LISTEN=9090", want: "containers:\nvalue: \"9090\"\nimage: $IMAGE\nname: helper"},
		step{line: "kn container add helper --image $IMAGE --env LISTEN=9090 | kn service create multi --image $IMAGE --port 8080 --extra-containers - -n $NS", want: "Service 'multi' created to latest revision 'multi-00001' is available at URL:"},
		step{line: "kn service describe multi -n $NS", want: "100% @latest (multi-00001) [1] (<t>)\nReplicas: 1/1" + allWell},
		step{line: "kubectl -n $NS get ksvc multi -o jsonpath='{.spec.template.spec.containers[*].name}'", want: "user-container-0 helper"},
		step{line: "kubectl -n $NS get pod -l serving.knative.dev/service=multi -o jsonpath='{.items[0].status.containerStatuses[*].ready}'", want: "true true"},
	)
}

func options(s *script) {
	s.run(
		step{line: "kubectl -n $NS create configmap settings --from-literal=k=v && kubectl -n $NS create secret generic private --from-literal=s=t && kubectl -n $NS create serviceaccount robot", want: "created"},
		step{line: "kn service create web --image $IMAGE --port 8080 --env-from cm:settings --env-value-from TOKEN=secret:private:s --mount /etc/settings=cm:settings --mount /tmp/x=ed:scratch --service-account robot " +
			"--scale 1..3 --scale-metric rps --scale-target 50 --scale-utilization 60 --scale-window 10s --scale-activation 2 --timeout 60 --limit memory=200Mi,cpu=500m --request memory=20Mi " +
			"--probe-readiness http::8080:/ --probe-liveness tcp::8080 --security-context strict --pull-policy IfNotPresent --arg a --user 1000 --cluster-local -n $NS", want: `
			Service 'web' created to latest revision 'web-00001' is available at URL:
			http://web.$NS.svc.cluster.local`, not: insecure},
		step{line: "kn service describe web -n $NS -v", want: `
			Labels: networking.knative.dev/visibility=cluster-local
			URL: http://web.$NS.svc.cluster.local
			Service Account: robot
			Port: 8080
			Env: TOKEN=[ref]
			EnvFrom: cm:settings
			Scale: 1 ... 3
			Target: 50
			Window: 10s
			TargetUtilization: 60
			Memory: 20Mi ... 200Mi
			CPU: 500m` + allWell},
		step{line: "kubectl -n $NS get ksvc web -o yaml", want: `
			autoscaling.knative.dev/activation-scale: "2"
			autoscaling.knative.dev/max-scale: "3"
			autoscaling.knative.dev/metric: rps
			imagePullPolicy: IfNotPresent
			runAsNonRoot: true
			runAsUser: 1000
			timeoutSeconds: 60
			serviceAccountName: robot`},
		step{line: "kn service update web --no-cluster-local --scale-max 5 --env-from cm:settings- --mount /tmp/x- --limit cpu- -n $NS", want: "Service 'web' updated to latest revision 'web-00002' is available at URL:\nhttp://web.$DOMAIN"},
		step{line: "kn service describe web -n $NS", want: "100% @latest (web-00002) [2]"},
		step{line: "kn service describe web -n $NS -o jsonpath='{.spec.template.spec.containers[0]}'", want: "TOKEN", not: "envFrom"},
		step{line: "kn service describe web -n $NS -o jsonpath='{.spec.template.metadata.annotations}'", want: "\"autoscaling.knative.dev/max-scale\":\"5\""},
		step{line: "kn service create h2 --image $IMAGE --port h2c:8080 -n $NS && kubectl -n $NS get ksvc h2 -o jsonpath='{.spec.template.spec.containers[0].ports[0].name}'", want: "Service 'h2' created\nh2c"},
	)
}

func failures(s *script) {
	s.run(
		step{line: "kn service create bad --image localhost:1/none --wait-timeout 30 -n $NS", fail: true, want: `
			Creating service 'bad' in namespace '$NS':
			Configuration "bad" does not have any ready Revision.
			Error: RevisionMissing: Configuration "bad" does not have any ready Revision.`},
		step{line: "kn service create crash --image $IMAGE --env EXIT=3 --wait-timeout 60 -n $NS", fail: true, want: "Creating service 'crash' in namespace '$NS':\nError: Revision"},
		step{line: "kn service list -n $NS", want: `
			bad http://bad.$DOMAIN <t> 0 OK / 3 False RevisionMissing : Configuration "bad" does not have any ready Revision.
			crash http://crash.$DOMAIN <t> 0 OK / 3 False RevisionMissing : Configuration "crash" does not have any ready Revision.`},
		step{line: "kn service describe crash -n $NS", want: `
			! crash-00001 (latest created) [1] (<t>)
			Error: ExitCode3
			!! Ready <t> RevisionMissing
			!! ConfigurationsReady <t> RevisionFailed
			!! RoutesReady <t> RevisionMissing`},
		step{line: "kn service wait crash --wait-timeout 5 -n $NS", fail: true, want: "Error: timeout: service 'crash' not ready after 5 seconds"},
		step{line: "kn service create zero --image $IMAGE --scale-init 0 -n $NS", fail: true, want: "invalid value: 0: spec.template.metadata.annotations.autoscaling.knative.dev/initial-scale=0 not allowed by cluster"},
		step{line: "kn service create picky --image $IMAGE --node-selector a=b -n $NS", fail: true, want: "must not set the field(s): spec.template.spec.nodeSelector"},
		step{line: "kn service create Web --image $IMAGE -n $NS", fail: true, want: "Error: Service.serving.knative.dev \"Web\" is invalid: metadata.name: Invalid value: \"Web\""},
		step{line: "kn service create noimage -n $NS", fail: true, want: "Error: 'service create' requires the image name to run provided with the --image option"},
		step{line: "kn service create lost --image $IMAGE -n none-such", fail: true, want: "Error: namespaces \"none-such\" not found"},
	)
}

func others(s *script) {
	plugins := filepath.Join(s.dir, "plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		s.t.Fatal(err)
	}
	config := filepath.Join(s.dir, "config.yaml")
	if err := os.WriteFile(config, []byte("plugins:\n  directory: "+plugins+"\n  path-lookup: false\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.run(step{line: "kn plugin list --config $DIR/config.yaml", want: "No plugins found."})
	if err := os.WriteFile(filepath.Join(plugins, "kn-greet"), []byte("#!/bin/sh\necho greetings, $1\n"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.run(
		step{line: "kn plugin list --config $DIR/config.yaml", want: "- kn-greet : $DIR/plugins/kn-greet"},
		step{line: "kn greet you --config $DIR/config.yaml", want: "greetings, you"},
		step{line: "kn version", want: "Supported APIs:\n* Serving\n- serving.knative.dev/v1"},
		step{line: "kn completion bash", want: "# bash completion for kn"},
		step{line: "kn nonsense", fail: true, want: "Error: unknown command \"nonsense\" for \"kn\""},
		step{line: "kn secret list -n $NS", want: "No secret found."},
	)
}
