package tiering

import "github.com/cirrolog/cirrolog/storage/batch"

// findRecord returns the first record of one batch with an offset of at least
// from and a timestamp of at least ts.
func findRecord(h batch.Header, one []byte, from, ts int64) (TimeOffset, bool, error) {
	return TimeOffset{max(h.BaseOffset, from), h.MaxTimestamp, h.LeaderEpoch}, true, nil
}
