package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// InitProducerId 0-5 for idempotent producers. A request with a known producer
// id (an epoch bump, KIP-360) gets a new id, which serves the same purpose.
// Transactional producers are refused with INVALID_REQUEST, which clients treat
// as fatal at once; the codes that speak of coordinators or authorization would
// make them retry or mislead their users.
func (s *Server) apiInitProducerID() api {
	return api{key: 22, min: 0, max: 5, name: "InitProducerId", handle: s.initProducerID}
}

func (s *Server) initProducerID(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.InitProducerIDRequest)
	resp := r.ResponseKind().(*kmsg.InitProducerIDResponse)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if r.TransactionalID != nil {
		resp.ErrorCode = kerr.InvalidRequest.Code
		return resp, nil
	}
	pid, epoch, err := s.b.InitProducerID(ctx)
	if err != nil {
		resp.ErrorCode = errorCode(err)
		return resp, nil
	}
	resp.ProducerID, resp.ProducerEpoch = pid, epoch
	return resp, nil
}
