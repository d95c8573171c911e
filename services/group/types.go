package group

import "time"

// Ticket names a request that waits for its answer. The caller chooses it; it
// is not zero and not in use by another waiting request of the coordinator.
type Ticket uint64

// Effects are what the caller of a method must do, in this order: append the
// writes to the log, in their order, and send the answers. Neither needs to be
// complete before the next method is called.
type Effects struct {
	Writes  []Write
	Answers []Answer
}

// WriteID names a write.
type WriteID uint64

// Write is a run of records for the coordinator's partition. When they are
// durable, or when it is known that they will not be, the caller reports it
// with Written. It may cut a write into several batches.
type Write struct {
	ID      WriteID
	Records []Record
}

// Record of the internal topic. A nil Value is a tombstone.
type Record struct {
	Key, Value []byte
}

// Answer completes the request with this ticket. Every request that was given
// a ticket is answered exactly once.
type Answer struct {
	Ticket   Ticket
	Response Response
}

// Response is one of *JoinResponse, *SyncResponse, *LeaveResponse,
// *CommitResponse, *OffsetDeleteResponse and *DeleteResponse. What byte slices
// it holds must not be changed.
type Response interface{ response() }

func (*JoinResponse) response()         {}
func (*SyncResponse) response()         {}
func (*LeaveResponse) response()        {}
func (*CommitResponse) response()       {}
func (*OffsetDeleteResponse) response() {}
func (*DeleteResponse) response()       {}

// Protocol is what a member offers: a way to assign and its own input to it.
type Protocol struct {
	Name     string
	Metadata []byte
}

// JoinRequest is Kafka's JoinGroup. InstanceID is empty for dynamic members.
type JoinRequest struct {
	Version              int16 // of the request: 4 requires member ids, 9 can skip the assignment
	GroupID, MemberID    string
	InstanceID           string
	ClientID, ClientHost string
	SessionTimeout       time.Duration
	RebalanceTimeout     time.Duration // negative: the session timeout, as in version 0
	ProtocolType         string
	Protocols            []Protocol
	Reason               string
}

// JoinResponse answers a JoinRequest. Members is filled for the leader only.
type JoinResponse struct {
	Err            error
	Generation     int32 // -1 with an error
	ProtocolType   string
	ProtocolName   string
	Leader         string
	SkipAssignment bool
	MemberID       string
	Members        []JoinMember
}

// JoinMember is what the leader is told of a member.
type JoinMember struct {
	MemberID, InstanceID string
	Metadata             []byte
}

// SyncRequest is Kafka's SyncGroup. Empty protocol fields are not checked.
type SyncRequest struct {
	GroupID, MemberID, InstanceID string
	Generation                    int32
	ProtocolType, ProtocolName    string
	Assignments                   []Assignment // from the leader only
}

// Assignment is what the leader gives a member.
type Assignment struct {
	MemberID string
	Data     []byte
}

// SyncResponse answers a SyncRequest.
type SyncResponse struct {
	Err                        error
	ProtocolType, ProtocolName string
	Assignment                 []byte
}

// HeartbeatRequest is Kafka's Heartbeat.
type HeartbeatRequest struct {
	GroupID, MemberID, InstanceID string
	Generation                    int32
}

// LeaveRequest is Kafka's LeaveGroup; versions 0 to 2 name one member.
type LeaveRequest struct {
	GroupID string
	Members []LeaveMember
}

// LeaveMember is named by its member id, by its instance id, or by both.
type LeaveMember struct {
	MemberID, InstanceID, Reason string
}

// LeaveResponse answers a LeaveRequest, with one entry per member of it.
type LeaveResponse struct {
	Err     error
	Members []LeaveResult
}

// LeaveResult is what became of a LeaveMember.
type LeaveResult struct {
	MemberID, InstanceID string
	Err                  error
}

// TopicID is a topic's id; the zero value means unknown and matches any.
type TopicID [16]byte

// CommitRequest is Kafka's OffsetCommit. A negative Generation without member
// ids is a commit of a consumer that does not use group membership.
type CommitRequest struct {
	Version                       int16
	GroupID, MemberID, InstanceID string
	Generation                    int32
	Retention                     time.Duration // versions 2 to 4; not positive: the configured one
	Topics                        []CommitTopic
}

// CommitTopic holds the offsets to commit for a topic.
type CommitTopic struct {
	Name       string
	ID         TopicID
	Partitions []CommitPartition
}

// CommitPartition is one offset to commit; LeaderEpoch is -1 if unknown.
type CommitPartition struct {
	Partition   int32
	Offset      int64
	LeaderEpoch int32
	Metadata    string
}

// CommitResponse answers a CommitRequest, in its order.
type CommitResponse struct {
	Topics []TopicResult
}

// TopicResult is what became of the partitions of a topic.
type TopicResult struct {
	Name       string
	ID         TopicID
	Partitions []PartitionResult
}

// PartitionResult is what became of a partition of a request.
type PartitionResult struct {
	Partition int32
	Err       error
}

// FetchRequest is Kafka's OffsetFetch for one group. Topics nil means all.
type FetchRequest struct {
	GroupID       string
	Topics        []TopicPartitions
	RequireStable bool
}

// TopicPartitions names partitions of a topic.
type TopicPartitions struct {
	Name       string
	ID         TopicID
	Partitions []int32
}

// FetchTopic holds the committed offsets of a topic.
type FetchTopic struct {
	Name       string
	ID         TopicID
	Partitions []FetchPartition
}

// FetchPartition is a committed offset. Without one, Offset and LeaderEpoch
// are -1 and Err is nil.
type FetchPartition struct {
	Partition   int32
	Offset      int64
	LeaderEpoch int32
	Metadata    string
	CommitTime  time.Time // zero without a commit
	Err         error     // ErrUnstableOffsetCommit
}

// OffsetDeleteRequest is Kafka's OffsetDelete.
type OffsetDeleteRequest struct {
	GroupID string
	Topics  []TopicPartitions
}

// OffsetDeleteResponse answers an OffsetDeleteRequest, in its order.
type OffsetDeleteResponse struct {
	Err    error // of the whole request; Topics is empty then
	Topics []TopicResult
}

// DeleteResponse answers a deletion of a group.
type DeleteResponse struct {
	Err error
}

// Listed is a group in a list.
type Listed struct {
	GroupID, ProtocolType string
	State                 State
}

// Description of a group. Metadata and assignments of members are there when
// the group is Stable.
type Description struct {
	GroupID, ProtocolType, Protocol string
	State                           State
	Generation                      int32
	Leader                          string
	Reason                          string // of the last rebalance
	Members                         []DescribedMember
}

// DescribedMember is a member in a Description.
type DescribedMember struct {
	MemberID, InstanceID, ClientID, ClientHost string
	Metadata, Assignment                       []byte
}

// Stats counts what a coordinator holds, and what it did since it was made.
type Stats struct {
	Groups     map[State]int
	Members    int
	Offsets    int
	Rebalances uint64 // begun
	Writes     int    // not yet reported as written
}
