// Package sim is the simulation of a whole cluster: several agents, clients,
// key-value store and bucket in one process, in fake time (testing/synctest), from
// one seed. Only its tests have code; docs/design/012-simulation.md says what they do.
package sim
