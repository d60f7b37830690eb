# Sonagi. "make up" starts the platform, "make test" sets up and passes all tests.

GO        ?= go
KUBE      := 1.36.3
VERSIONS  := k8s.io/component-base/version k8s.io/client-go/pkg/version
KUBEFLAGS := $(foreach v,$(VERSIONS),-X $(v).gitVersion=v$(KUBE) -X $(v).gitMajor=1 -X $(v).gitMinor=36 -X $(v).gitTreeState=clean)
LDFLAGS   := -s -w $(KUBEFLAGS)
SUDO      := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: up build kn test check unit race scenario bench clean

# up builds the platform, starts it in the foreground and deploys the sample on the first start.
up: build
	$(SUDO) bin/sonagi up --deploy samples/hello $(UPFLAGS)

# build needs Go and gcc. The first one compiles Kubernetes: 8 minutes or more on two cores; later ones take seconds.
build:
	@mkdir -p bin
	@test -d "$$($(GO) env GOCACHE)/00" || echo "First build: Kubernetes is compiled too; this takes some minutes."
	$(GO) generate ./internal/node/container/small
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/sonagi ./cmd/sonagi

# kn is upstream's client, for the scenarios and for you.
kn: bin/kn
bin/kn: test/kn/go.mod
	@mkdir -p bin
	cd test/kn && $(GO) build -ldflags '-s -w' -o ../../bin/kn knative.dev/client/cmd/kn

test: build kn check unit race scenario

# check is what needs no running: format, vet, staticcheck, the map of the house.
check:
	@unformatted="$$(gofmt -l $$(git ls-files '*.go'))"; test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test .

# unit runs the tests of every room, as root, with real namespaces and containers.
unit:
	$(GO) test -p 1 -timeout 15m ./api/... ./cmd/... ./internal/... ./bench/...

# race is for the rooms that run concurrently. Their apitest rooms link a whole control plane, which would have to be
# compiled again with the race detector: half an hour for what the unit run has exercised.
RACE := ./internal/run ./internal/supervise ./internal/serving/... ./internal/mesh/... ./internal/node/... ./internal/wire
race:
	$(GO) test -race -short -p 1 -timeout 20m $$($(GO) list $(RACE) | grep -v /apitest)

# scenario starts the platform itself, with real containers and the real clients.
scenario: build kn
	$(GO) test -p 1 -count 1 -timeout 60m ./test/...

# bench fills the table in bench/README.md.
bench: build kn
	bench/run

clean:
	rm -rf bin
