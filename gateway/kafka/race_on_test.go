//go:build race

package kafka

// underRace says that the race detector is on, which allocates too.
const underRace = true
