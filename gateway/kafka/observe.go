package kafka

import "github.com/twmb/franz-go/pkg/kmsg"

// responseError returns the error code of a response as a whole, or of its
// first part that has one, for the APIs that clients use all the time; 0 for
// the others.
func responseError(resp kmsg.Response) int16 {
	switch r := resp.(type) {
	case *kmsg.ApiVersionsResponse:
		return r.ErrorCode
	case *kmsg.InitProducerIDResponse:
		return r.ErrorCode
	case *kmsg.DescribeClusterResponse:
		return r.ErrorCode
	case *kmsg.DescribeLogDirsResponse:
		return r.ErrorCode
	case *kmsg.MetadataResponse:
		for i := range r.Topics {
			if r.Topics[i].ErrorCode != 0 {
				return r.Topics[i].ErrorCode
			}
		}
	case *kmsg.CreateTopicsResponse:
		for i := range r.Topics {
			if r.Topics[i].ErrorCode != 0 {
				return r.Topics[i].ErrorCode
			}
		}
	case *kmsg.ListOffsetsResponse:
		for i := range r.Topics {
			for j := range r.Topics[i].Partitions {
				if code := r.Topics[i].Partitions[j].ErrorCode; code != 0 {
					return code
				}
			}
		}
	}
	return 0
}
