# Cirrolog: `make run` runs a whole node, `make test` runs every test.
SHELL := /bin/bash
BIN := $(CURDIR)/.cache/bin
export PATH := $(BIN):$(PATH)
GO ?= go
# gRPC's own traces bring html/template along, which keeps the linker from leaving out what nobody calls: half
# of the program.
export GOFLAGS ?= -tags=grpcnotrace
# One static file for any Linux; without libc a process takes 2 MB less.
export CGO_ENABLED ?= 0
FUZZTIME ?= 60s

.PHONY: run build lambda test race fuzz crash faults chaos fresh mutants sim bench bench-cold bench-readers bench-object measure-cluster bench-http bench-kafka scale lint snapshot deps services-up services-down localstack-up localstack-down proto

build:
	$(GO) build -o bin/cirrolog ./services/cirrolog

# lambda builds the Lambda functions as zip files for provided.al2023 on arm64: the same bytes each time.
lambda:
	$(GO) run ./internal/lambdazip -o .cache/lambda

run: build
	./bin/cirrolog serve --data-dir data

# deps installs what the tests need: Debian packages when root on Debian, Go
# tools at pinned versions into .cache/bin.
deps:
	@./localstack/deps.sh

test: deps
	$(GO) vet ./...
	$(GO) test -timeout 20m ./...

race: deps
	CGO_ENABLED=1 $(GO) test -race -timeout 40m ./...

fuzz:
	@FUZZTIME=$(FUZZTIME) ./localstack/fuzz.sh

# crash kills a real process again and again while Kafka producers, HTTP clients
# with Idempotency-Keys and a consumer group are at work.
CRASH_KILLS ?= 200
crash: deps
	CRASH_KILLS=$(CRASH_KILLS) $(GO) test -count=1 -timeout 90m -run TestKill -v ./localstack/e2e

# faults puts a real process on a faulty bucket for a minute, and on one that is
# away for five, under load.
faults: deps
	FAULT_SECONDS=60 OUTAGE_SECONDS=300 $(GO) test -count=1 -timeout 20m -run 'TestFaults|TestBucketAway' -v ./localstack/e2e

# chaos runs a cluster of real agents under real faults: CHAOS_STORE is redis or dynamo, CHAOS_SEED plays a
# schedule again, CHAOS_ONLY=kind,kind chooses kinds of faults.
CHAOS_MINUTES ?= 30
chaos: deps
	CHAOS_MINUTES=$(CHAOS_MINUTES) $(GO) test -count=1 -timeout 12h -run 'TestChaos$$' -v ./localstack/chaos

# fresh runs the tests on a new Debian that has only Go, git and make.
fresh:
	@./localstack/fresh.sh $${FRESH:-/tmp/cirrolog-fresh} .ci/run

# mutants plants known bugs and checks that a test catches each.
mutants: deps
	@CGO_ENABLED=1 ./localstack/mutants/run.sh

# sim plays seeds of the simulation of a whole cluster: SIM_SEED is the first,
# SIM_SEEDS how many, SIM_OPS and SIM_FAULTS how much each does.
SIM_SEED ?= 1
SIM_SEEDS ?= 2000
sim:
	SIM_SEED=$(SIM_SEED) SIM_SEEDS=$(SIM_SEEDS) $(GO) test -count=1 -timeout 6h -run 'TestSim$$' -v ./services/sim

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

# bench-cold measures a replay of what is only in the bucket beside plain GETs.
bench-cold: deps
	COLD_MIB=1024 COLD_RATE=200 $(GO) test -count=1 -timeout 30m -run TestColdReplay -v ./localstack/e2e

# bench-readers measures a replay through one stateless reader and through two.
bench-readers: deps
	READERS_MIB=$${READERS_MIB:-512} READERS_RATE=$${READERS_RATE:-60} $(GO) test -count=1 -timeout 30m -run TestReaders -v ./localstack/e2e

# measure-cluster kills an agent that leads 10 and 10,000 partitions, starts agents and recovers the metadata store with
# 1,000 and 50,000 segments in the bucket, and lets one join a cluster of 10 GiB (needs 30 GiB of disk).
measure-cluster: deps
	MEASURE_CLUSTER=1 $(GO) test -count=1 -timeout 60m -run 'TestMeasure' -v ./localstack/e2e

# bench-object measures an agent of a cluster on MinIO: acknowledged MB/s, waits, PUTs and CPU by wal.linger.
bench-object: deps
	@python3 localstack/bench/object.py

# bench-http measures the HTTP gateway beside the Kafka port of the same node: two
# minutes.
bench-http: deps
	HTTP_SECONDS=$${HTTP_SECONDS:-3} $(GO) test -count=1 -timeout 10m -run TestHTTPBesideKafka -v ./localstack/e2e

bench-kafka: build
	@./localstack/bench/compare.sh

# proto generates the agents' own protocol anew; what it writes is checked in.
proto:
	cd gateway/rpc && $(GO) run github.com/bufbuild/buf/cmd/buf@v1.75.0 lint && $(GO) run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate

lint: deps
	$(BIN)/staticcheck ./...

# snapshot makes what a release has, of the commit that is checked out: archives, packages, bills of materials.
# Goreleaser, which it builds for that, takes minutes once.
snapshot:
	@./localstack/deps.sh release
	GOFLAGS= $(BIN)/goreleaser release --snapshot --clean --config infra/goreleaser.yaml

services-up: deps
	@./localstack/services.sh up

services-down:
	@./localstack/services.sh down

# localstack-up starts a cluster of three agents on MinIO, DynamoDB Local, Redis and an AWS emulator, on what terraform/
# creates there; localstack-down stops it and deletes its data.
localstack-up:
	@./localstack/localstack.sh up

localstack-down:
	@./localstack/localstack.sh down

# scale measures one node with many partitions, and Apache Kafka with 5,000
# (needs java and mvn), for docs/performance.md. SCALE chooses the columns:
# SERVER:PARTITIONS[xTOPICS].
scale: deps
	SCALE=$${SCALE:-ours:10000,ours:10000x100,ours:100000,ours:100000x1000,kafka:5000} SCALE_OUT=$${SCALE_OUT:-$(CURDIR)/.cache/scale.md} \
		$(GO) test -count=1 -timeout 120m -run TestScaleTable -v ./localstack/e2e
