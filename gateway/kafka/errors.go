package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// codes maps our errors to Kafka's, the first match counts.
func codes() []struct {
	err   error
	kafka *kerr.Error
} {
	return []struct {
		err   error
		kafka *kerr.Error
	}{
		{broker.ErrUnknownTopic, kerr.UnknownTopicOrPartition},
		{broker.ErrUnknownPartition, kerr.UnknownTopicOrPartition},
		{broker.ErrNotLeader, kerr.NotLeaderForPartition},
		{broker.ErrClosed, kerr.NotLeaderForPartition},
		{broker.ErrFencedEpoch, kerr.FencedLeaderEpoch},
		{broker.ErrUnknownEpoch, kerr.UnknownLeaderEpoch},
		{broker.ErrOffsetOutOfRange, kerr.OffsetOutOfRange},
		{broker.ErrOutOfOrderSequence, kerr.OutOfOrderSequenceNumber},
		{broker.ErrInvalidProducerEpoch, kerr.InvalidProducerEpoch},
		{broker.ErrUnknownProducer, kerr.UnknownProducerID},
		{broker.ErrDuplicateSequence, kerr.DuplicateSequenceNumber},
		{broker.ErrMessageTooLarge, kerr.MessageTooLarge},
		{broker.ErrInvalidTimestamp, kerr.InvalidTimestamp},
		{broker.ErrThrottled, kerr.RequestTimedOut},
		{broker.ErrTransactionalUnsupported, kerr.UnsupportedForMessageFormat},
		{batch.ErrMagic, kerr.InvalidRecord},
		{batch.ErrCodec, kerr.UnsupportedCompressionType},
		{batch.ErrTimestampType, kerr.InvalidTimestamp},
		{batch.ErrInvalid, kerr.InvalidRecord},
		{batch.ErrCorrupt, kerr.CorruptMessage},
		{batch.ErrTruncated, kerr.CorruptMessage},
		{metadata.ErrTopicExists, kerr.TopicAlreadyExists},
		{metadata.ErrInvalidTopic, kerr.InvalidTopicException},
		{metadata.ErrInvalidPartitions, kerr.InvalidPartitions},
		{metadata.ErrInvalidReplication, kerr.InvalidReplicationFactor},
		{metadata.ErrInvalidConfig, kerr.InvalidConfig},
		{metadata.ErrInvalidRequest, kerr.InvalidRequest},
		{metadata.ErrPolicy, kerr.PolicyViolation},
		{metadata.ErrFenced, kerr.NotLeaderForPartition},
		{metadata.ErrUnavailable, kerr.RequestTimedOut},
		{broker.ErrGroupsLoading, kerr.CoordinatorLoadInProgress},
		{group.ErrCoordinatorNotAvailable, kerr.CoordinatorNotAvailable},
		{group.ErrNotCoordinator, kerr.NotCoordinator},
		{group.ErrInvalidGroupID, kerr.InvalidGroupID},
		{group.ErrInvalidRequest, kerr.InvalidRequest},
		{group.ErrInvalidTopic, kerr.InvalidTopicException},
		{group.ErrIllegalGeneration, kerr.IllegalGeneration},
		{group.ErrInconsistentGroupProtocol, kerr.InconsistentGroupProtocol},
		{group.ErrUnknownMemberID, kerr.UnknownMemberID},
		{group.ErrInvalidSessionTimeout, kerr.InvalidSessionTimeout},
		{group.ErrRebalanceInProgress, kerr.RebalanceInProgress},
		{group.ErrMemberIDRequired, kerr.MemberIDRequired},
		{group.ErrFencedInstanceID, kerr.FencedInstanceID},
		{group.ErrGroupMaxSizeReached, kerr.GroupMaxSizeReached},
		{group.ErrOffsetMetadataTooLarge, kerr.OffsetMetadataTooLarge},
		{group.ErrInvalidCommitOffsetSize, kerr.InvalidCommitOffsetSize},
		{group.ErrUnstableOffsetCommit, kerr.UnstableOffsetCommit},
		{group.ErrNonEmptyGroup, kerr.NonEmptyGroup},
		{group.ErrGroupIDNotFound, kerr.GroupIDNotFound},
		{group.ErrGroupSubscribedToTopic, kerr.GroupSubscribedToTopic},
		{context.DeadlineExceeded, kerr.RequestTimedOut},
		{context.Canceled, kerr.NotLeaderForPartition},
		{broker.ErrStorage, kerr.KafkaStorageError},
	}
}

// checkInternal refuses changes that a client wants of an internal topic, which
// only the agent itself may make: records, and how many partitions there are.
func checkInternal(topic string) error {
	if broker.IsInternal(topic) {
		return fmt.Errorf("%w: %s is internal", metadata.ErrInvalidTopic, topic)
	}
	return nil
}

// errorCode returns Kafka's error code of an error, 0 for nil.
func errorCode(err error) int16 {
	if err == nil {
		return 0
	}
	if k, ok := errors.AsType[*kerr.Error](err); ok {
		return k.Code
	}
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			return c.kafka.Code
		}
	}
	return kerr.UnknownServerError.Code
}

// errorMessage is the text for responses that have room for one.
func errorMessage(err error) *string {
	if err == nil {
		return nil
	}
	s := err.Error()
	if k, ok := errors.AsType[*kerr.Error](err); ok && k == err {
		s = k.Description
	}
	return &s
}
