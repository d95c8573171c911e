package agent

import (
	"fmt"
	"net/http"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// DiskInfo describes a disk that has, or had, partitions of class local.
type DiskInfo struct {
	Disk        string `json:"disk"`
	Node        int32  `json:"node"`                  // that ran on it last
	Incarnation string `json:"incarnation,omitempty"` // of that start
	State       string `json:"state"`                 // active, away or abandoned
	SinceMs     int64  `json:"since_ms"`              // since 1970, by the clock of who wrote it
	Partitions  int    `json:"partitions"`            // led by its agent, or given away
}

// States of a disk.
const (
	diskActive    = "active"
	diskAway      = "away"
	diskAbandoned = "abandoned"
)

func (a *Agent) diskInfo(r *metadata.DiskRecord) DiskInfo {
	d := DiskInfo{Disk: r.Disk.String(), Node: r.Node, Incarnation: string(r.Incarnation), State: diskAway, SinceMs: r.AtMs, Partitions: len(r.Partitions)}
	if r.Abandoned() {
		d.State = diskAbandoned
		return d
	}
	if _, there := a.meta.NodeOf(r.Incarnation); there {
		d.State = diskActive
	}
	_, local := a.owned(r.Incarnation)
	d.Partitions = max(local, d.Partitions)
	return d
}

// owned counts the partitions that an agent leads by the metadata store, and those of them that are of class local.
func (a *Agent) owned(inc ids.Incarnation) (all, local int) {
	for _, t := range a.meta.Snapshot().Topics() {
		for p := range t.Partitions {
			if a.meta.Owner(t, p).Incarnation != inc {
				continue
			}
			if all++; t.Config.Durability == metadata.DurabilityLocal {
				local++
			}
		}
	}
	return all, local
}

// disks lists the disks of the cluster that have, or had, partitions of class local.
func (a *Agent) disks(w http.ResponseWriter, r *http.Request) {
	out := []DiskInfo{}
	if a.clustered() {
		all, err := a.meta.Disks(r.Context())
		if err != nil {
			writeError(w, err)
			return
		}
		for i := range all {
			out = append(out, a.diskInfo(&all[i]))
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"disks": out})
}

// abandonDisk declares a disk lost.
func (a *Agent) abandonDisk(w http.ResponseWriter, r *http.Request) {
	id, err := ids.ParseDiskID(r.PathValue("disk"))
	if err != nil {
		writeError(w, fmt.Errorf("%w: %w; `cirrolog cluster disks` lists them", errBadQuery, err))
		return
	}
	m := a.leading.Load()
	if m == nil {
		writeError(w, fmt.Errorf("%w: this node is alone, only agents of a cluster give disks up", errBadQuery))
		return
	}
	rec, err := m.AbandonDisk(r.Context(), id)
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, a.diskInfo(rec))
}
