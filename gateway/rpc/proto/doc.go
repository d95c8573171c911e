// Package proto has the messages and services of the agents' own protocol, generated from agent.proto by `make proto`.
package proto
