//go:build race

package httpgate_test

// underRace says that the race detector is on, which allocates too.
const underRace = true
