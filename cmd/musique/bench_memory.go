package main

import (
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"time"
)

// memoryLook is how often it is looked how much memory is in use, where its peak is sought.
const memoryLook = 5 * time.Millisecond

// memory is what this process holds, in bytes.
type memory struct {
	// heap is the heap's spans in use, what waits to be collected included, and stacks those of the goroutines' stacks.
	heap, stacks int64
	// resident is the resident set; 0 where the system has no /proc/self/status.
	resident int64
}

func memoryNow() memory {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	value := func(i int) int64 { return int64(samples[i].Value.Uint64()) }
	return memory{heap: value(0) + value(1), stacks: value(2), resident: residentBytes()}
}

// settledMemory is what is held when nothing is left to collect and what is free is given back to the system.
func settledMemory() memory {
	runtime.GC() // what has a finalizer is freed by the collection after the one that found it
	debug.FreeOSMemory()
	return memoryNow()
}

// residentBytes is what this process has resident.
func residentBytes() int64 { return residentBytesOf("self") }

// residentBytesOf is VmRSS of proc_pid_status(5); 0 where the system has none.
func residentBytesOf(process string) int64 {
	status, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return 0
	}
	_, line, _ := bytes.Cut(status, []byte("VmRSS:"))
	line, _, _ = bytes.Cut(line, []byte("kB"))
	kib, _ := strconv.ParseInt(string(bytes.TrimSpace(line)), 10, 64)
	return kib << 10
}

// watchMemory looks for the peak of each figure until it is told to stop.
func watchMemory() (stop func() memory) {
	end, peak := make(chan struct{}), make(chan memory)
	go func() {
		tick := time.NewTicker(memoryLook)
		defer tick.Stop()
		var highest memory
		for ended := false; !ended; {
			now := memoryNow()
			highest = memory{max(highest.heap, now.heap), max(highest.stacks, now.stacks), max(highest.resident, now.resident)}
			select {
			case <-tick.C:
			case <-end:
				ended = true
			}
		}
		peak <- highest
	}()
	return func() memory {
		close(end)
		return <-peak
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
