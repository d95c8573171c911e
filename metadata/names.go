package metadata

import (
	"fmt"
	"strings"
)

// Limits of a topic.
const (
	MaxTopicName  = 249     // characters, Kafka's limit
	MaxPartitions = 100_000 // of one topic
)

// ValidateTopicName checks Kafka's rules: 1 to 249 of [a-zA-Z0-9._-], and
// neither "." nor "..". The error wraps ErrInvalidTopic.
func ValidateTopicName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: the empty string is not allowed", ErrInvalidTopic)
	case name == "." || name == "..":
		return fmt.Errorf("%w: '.' and '..' are not allowed", ErrInvalidTopic)
	case len(name) > MaxTopicName:
		return fmt.Errorf("%w: the length of '%s…' is %d, longer than the %d characters allowed",
			ErrInvalidTopic, strings.ToValidUTF8(name[:40], "?"), len(name), MaxTopicName)
	}
	for i := range len(name) {
		if !topicChar(name[i]) {
			return fmt.Errorf("%w: %q contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'", ErrInvalidTopic, name)
		}
	}
	return nil
}

func topicChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

// collisionKey is equal for names that collide in the names of metrics, where
// '.' and '_' can't be told apart. As in Kafka such topics can't both exist.
func collisionKey(name string) string { return strings.ReplaceAll(name, ".", "_") }

// checkPartitions resolves -1 to def and checks the limits.
func checkPartitions(n, def int32) (int32, error) {
	if n == -1 {
		n = def
	}
	if n <= 0 {
		return 0, fmt.Errorf("%w: number of partitions %d must be larger than 0", ErrInvalidPartitions, n)
	}
	if n > MaxPartitions {
		return 0, fmt.Errorf("%w: number of partitions %d, at most %d", ErrInvalidPartitions, n, MaxPartitions)
	}
	return n, nil
}

// checkReplication accepts -1 (default) and 1 to the number of agents. Copies
// are the bucket's work, so every accepted value means the same.
func checkReplication(rf int16, agents int) error {
	if rf == -1 || rf >= 1 && int(rf) <= agents {
		return nil
	}
	if rf < 1 {
		return fmt.Errorf("%w: %d, must be larger than 0, or -1 for the default", ErrInvalidReplication, rf)
	}
	return fmt.Errorf("%w: %d, larger than the number of available agents, %d", ErrInvalidReplication, rf, agents)
}
