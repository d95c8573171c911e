package metadata

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// process names one process: the start of its machine, its namespace of process ids, its id there,
// and when it began, in ticks since the machine started; "": not known. So another process of the
// same namespace can tell whether it has ended, which nobody else can.
type process string

func thisProcess() process { return processOf(os.Getpid()) }

func processOf(pid int) process {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, err2 := os.Readlink("/proc/self/ns/pid")
	began, runs, err3 := processStart(pid)
	if errors.Join(err, err2, err3) != nil || !runs {
		return ""
	}
	return process(strings.Join([]string{strings.TrimSpace(string(boot)), space, strconv.Itoa(pid), began}, " "))
}

// processStart reads when a process began; runs is false for one that has ended.
func processStart(pid int) (began string, runs bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	// proc(5): PID (NAME) STATE …, where NAME may hold anything; the start time is field 22.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return "", false, errors.New("/proc/PID/stat has too few fields")
	}
	return fields[19], fields[0] != "Z" && fields[0] != "X", nil
}

// runs tells whether p runs; known is false for one that self, the process that asks, can't see.
func (p process) runs(self process) (runs, known bool) {
	theirs, ours := strings.Fields(string(p)), strings.Fields(string(self))
	if len(theirs) != 4 || len(ours) != 4 || theirs[0] != ours[0] || theirs[1] != ours[1] {
		return false, false
	}
	pid, err := strconv.Atoi(theirs[2])
	if err != nil {
		return false, false
	}
	began, runs, err := processStart(pid)
	if err != nil {
		return false, false
	}
	return runs && began == theirs[3], true
}
