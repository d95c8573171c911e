package group

import "errors"

// The errors of answers, each named after the Kafka error that a gateway makes
// of it. They are compared with errors.Is.
var (
	ErrCoordinatorNotAvailable   = errors.New("coordinator not available")
	ErrNotCoordinator            = errors.New("not coordinator")
	ErrInvalidGroupID            = errors.New("invalid group id")
	ErrInvalidRequest            = errors.New("invalid request")
	ErrInvalidTopic              = errors.New("invalid topic")
	ErrIllegalGeneration         = errors.New("illegal generation")
	ErrInconsistentGroupProtocol = errors.New("inconsistent group protocol")
	ErrUnknownMemberID           = errors.New("unknown member id")
	ErrInvalidSessionTimeout     = errors.New("invalid session timeout")
	ErrRebalanceInProgress       = errors.New("rebalance in progress")
	ErrMemberIDRequired          = errors.New("member id required")
	ErrFencedInstanceID          = errors.New("fenced instance id")
	ErrGroupMaxSizeReached       = errors.New("group max size reached")
	ErrOffsetMetadataTooLarge    = errors.New("offset metadata too large")
	ErrInvalidCommitOffsetSize   = errors.New("invalid commit offset size")
	ErrUnstableOffsetCommit      = errors.New("unstable offset commit")
	ErrNonEmptyGroup             = errors.New("non-empty group")
	ErrGroupIDNotFound           = errors.New("group id not found")
	ErrGroupSubscribedToTopic    = errors.New("group subscribed to topic")
)

// ErrRecordTooLarge is a record that the log does not take. Callers report a
// write with it if nothing of the write is in the log. As in Kafka, a committed
// offset is then ErrInvalidCommitOffsetSize, and a group's assignment an
// unknown error.
var ErrRecordTooLarge = errors.New("record too large")

// Errors of Apply: what is in the log is not what this package writes.
var (
	// ErrUnknownRecord is a record of a type or version that this package does
	// not know, for example one of another group protocol. A loader skips it.
	ErrUnknownRecord = errors.New("unknown record type or version")
	// ErrCorruptRecord is a record of a known type that does not parse.
	ErrCorruptRecord = errors.New("corrupt record")
)

// storeError is what clients are told about a write that failed. Errors of
// this package pass; anything else is retriable.
func storeError(err error) error {
	for _, e := range []error{ErrNotCoordinator, ErrInvalidRequest, ErrRecordTooLarge} {
		if errors.Is(err, e) {
			return e
		}
	}
	return ErrCoordinatorNotAvailable
}
