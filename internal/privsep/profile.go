//go:build profile

package privsep

import (
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"smtpd/internal/imsg"
)

// When a profile begins, once the process is warm, and how long it takes. Ours.
const (
	profileAfter = 500 * time.Millisecond
	profileTime  = 4 * time.Second
)

// profile writes what the process does with its time to a file beside the
// program. Only for bench/profile; it ends by itself, or with the process.
func profile(role imsg.Role) {
	exe, err := os.Executable()
	if err != nil {
		return
	}
	f, err := os.Create(fmt.Sprintf("%s-%s-%d.prof", exe, role, time.Now().UnixNano()))
	if err != nil {
		return
	}
	go func() {
		defer f.Close()
		time.Sleep(profileAfter)
		if pprof.StartCPUProfile(f) == nil {
			time.Sleep(profileTime)
			pprof.StopCPUProfile()
		}
	}()
}
