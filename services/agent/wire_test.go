package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// wire is one connection that speaks the Kafka protocol, a request at a time.
type wire struct {
	nc   net.Conn
	f    *kmsg.RequestFormatter
	corr int32
	buf  []byte
}

func dialWire(addr string) (*wire, error) {
	nc, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &wire{nc: nc, f: kmsg.NewRequestFormatter(kmsg.FormatterClientID("wire"))}, nil
}

// send sends a request of the version that it has.
func (w *wire) send(req kmsg.Request) error {
	w.corr++
	w.buf = w.f.AppendRequest(w.buf[:0], req, w.corr)
	_, err := w.nc.Write(w.buf)
	return err
}

// ask sends a request and waits a minute at most for its answer.
func (w *wire) ask(req kmsg.Request) (kmsg.Response, error) {
	if err := w.send(req); err != nil {
		return nil, err
	}
	_ = w.nc.SetReadDeadline(time.Now().Add(time.Minute))
	var head [4]byte
	if _, err := io.ReadFull(w.nc, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(w.nc, b); err != nil {
		return nil, err
	}
	if got := int32(binary.BigEndian.Uint32(b)); got != w.corr {
		return nil, fmt.Errorf("answer %d to request %d", got, w.corr)
	}
	b = b[4:]
	resp := req.ResponseKind()
	if resp.IsFlexible() && req.Key() != 18 {
		b = b[1:] // no tags
	}
	return resp, resp.ReadFrom(b)
}

// peer is a member of a group at the end of a wire.
type peer struct {
	*wire
	group, id, instance string
	session, rebalance  time.Duration
	metadata            []byte
	generation          int32
	leader              bool
	members             []string // if it leads
	assigned            []byte
	version             int16 // of JoinGroup
}

func newPeer(addr, group, instance string) (*peer, error) {
	w, err := dialWire(addr)
	return &peer{wire: w, group: group, instance: instance, session: 30 * time.Second, rebalance: time.Minute, version: 9}, err
}

func (p *peer) instanceID() *string {
	if p.instance == "" {
		return nil
	}
	return &p.instance
}

// join joins until it is a member; the error is Kafka's.
func (p *peer) join() error {
	for {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.MemberID, req.InstanceID, req.ProtocolType = p.version, p.group, p.id, p.instanceID(), "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(p.session.Milliseconds()), int32(p.rebalance.Milliseconds())
		req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: p.metadata}}
		r, err := p.ask(req)
		if err != nil {
			return err
		}
		resp := r.(*kmsg.JoinGroupResponse)
		err = kerr.ErrorForCode(resp.ErrorCode)
		if err == nil || err == kerr.MemberIDRequired {
			p.id = resp.MemberID
		}
		if err == kerr.MemberIDRequired {
			continue
		}
		if err != nil {
			return err
		}
		p.generation, p.leader, p.members = resp.Generation, resp.LeaderID == p.id && !resp.SkipAssignment, nil
		for _, m := range resp.Members {
			p.members = append(p.members, m.MemberID)
		}
		return nil
	}
}

// sync fetches the assignment. A leader gives each member its own id as the
// assignment, followed by size bytes.
func (p *peer) sync(size int) error {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Version, req.Group, req.MemberID, req.InstanceID, req.Generation = 5, p.group, p.id, p.instanceID(), p.generation
	kind, name := "consumer", "range"
	req.ProtocolType, req.Protocol = &kind, &name
	if p.leader {
		for _, m := range p.members {
			req.GroupAssignment = append(req.GroupAssignment, kmsg.SyncGroupRequestGroupAssignment{MemberID: m, MemberAssignment: append([]byte(m), make([]byte, size)...)})
		}
	}
	r, err := p.ask(req)
	if err != nil {
		return err
	}
	resp := r.(*kmsg.SyncGroupResponse)
	p.assigned = resp.MemberAssignment
	return kerr.ErrorForCode(resp.ErrorCode)
}

// settle joins and syncs until it has an assignment.
func (p *peer) settle(ctx context.Context) error {
	for ctx.Err() == nil {
		err := p.join()
		if err == nil {
			err = p.sync(0)
		}
		switch err {
		case nil:
			return nil
		case kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator:
		case kerr.UnknownMemberID:
			p.id = ""
		default:
			return err
		}
	}
	return ctx.Err()
}

func (p *peer) heartbeat() error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.InstanceID, req.Generation = 4, p.group, p.id, p.instanceID(), p.generation
	r, err := p.ask(req)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(r.(*kmsg.HeartbeatResponse).ErrorCode)
}

func (p *peer) leave() error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Version, req.Group = 3, p.group
	req.Members = []kmsg.LeaveGroupRequestMember{{MemberID: p.id, InstanceID: p.instanceID()}}
	r, err := p.ask(req)
	if err != nil {
		return err
	}
	resp := r.(*kmsg.LeaveGroupResponse)
	for _, m := range resp.Members {
		if m.ErrorCode != 0 {
			return kerr.ErrorForCode(m.ErrorCode)
		}
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

// commit commits an offset of partition 0 of a topic.
func (p *peer) commit(topic string, offset int64) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.MemberID, req.InstanceID, req.Generation = 9, p.group, p.id, p.instanceID(), p.generation
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Offset = offset
	req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: topic, Partitions: []kmsg.OffsetCommitRequestTopicPartition{rp}}}
	r, err := p.ask(req)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(r.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode)
}

func (p *peer) close() { _ = p.nc.Close() }
