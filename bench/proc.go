package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is Linux's USER_HZ, which is 100 on every platform that Go runs on.
const ticksPerSecond = 100

// usage is what processes have used up to a moment.
type usage struct {
	at     time.Time
	cpu    []float64 // seconds, for each watched process with its children
	own    float64   // seconds of this process
	busy   float64   // seconds of all processors in all processes
	total  float64   // seconds of all processors, idle ones too
	memory []int64   // bytes: proportional set size of each watched process with its children
}

// procStat reads parent and CPU seconds (children that have ended included) of a process.
func procStat(pid int) (ppid int, cpu float64, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	end := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 15 {
		return 0, 0, false
	}
	ppid, _ = strconv.Atoi(f[1])
	var ticks int64
	for _, s := range f[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(s, 10, 64)
		ticks += n
	}
	return ppid, float64(ticks) / ticksPerSecond, true
}

// pss is the memory of one process where shared pages count in parts, in bytes.
func pss(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			f := strings.Fields(rest)
			n, _ := strconv.ParseInt(f[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// measure reads the usage now. Memory is read only on demand: it costs the kernel some work.
func measure(pids []int, memory bool) usage {
	u := usage{at: time.Now(), cpu: make([]float64, len(pids)), memory: make([]int64, len(pids))}
	parents := map[int]int{}
	cpus := map[int]float64{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if ppid, cpu, ok := procStat(pid); ok {
			parents[pid], cpus[pid] = ppid, cpu
		}
	}
	for i, root := range pids {
		for pid := range cpus {
			if pid == root || descends(parents, pid, root) {
				u.cpu[i] += cpus[pid]
				if memory {
					u.memory[i] += pss(pid)
				}
			}
		}
	}
	u.own = cpus[os.Getpid()]
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		first, _, _ := strings.Cut(string(b), "\n")
		for i, s := range strings.Fields(first) {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || i > 8 { // guest times stand in user time already
				continue
			}
			u.total += float64(n) / ticksPerSecond
			if i != 4 && i != 5 { // idle, iowait
				u.busy += float64(n) / ticksPerSecond
			}
		}
	}
	return u
}

func descends(parents map[int]int, pid, root int) bool {
	for range 64 {
		p, ok := parents[pid]
		if !ok || p == 0 {
			return false
		}
		if p == root {
			return true
		}
		pid = p
	}
	return false
}

// since gives CPU seconds of each watched process, of this one, and the share of the machine that went to others.
func (u usage) since(before usage) (cpu []float64, own, others float64) {
	cpu = make([]float64, len(u.cpu))
	sum := 0.0
	for i := range u.cpu {
		cpu[i] = u.cpu[i] - before.cpu[i]
		sum += cpu[i]
	}
	own = u.own - before.own
	if total := u.total - before.total; total > 0 {
		others = max(0, (u.busy-before.busy-sum-own)/total)
	}
	return cpu, own, others
}
