// Launcher starts a server of any kind, one per port:
//
//	launcher PORT COMMAND [ARG...]
//
// The server inherits the lock and keeps the port guarded as long as it lives, though it knows
// nothing of locks and the launcher is gone. `llmlb status` shows it, `llmlb stop` stops it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/llmlb/llmlb-lock/go/llmlblock"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: launcher PORT COMMAND [ARG...]")
		os.Exit(2)
	}
	port, err := strconv.ParseUint(os.Args[1], 10, 16)
	if err != nil {
		fmt.Fprintln(os.Stderr, "launcher:", err)
		os.Exit(2)
	}
	pid, err := launch(uint16(port), os.Args[2], os.Args[3:]...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "launcher:", err)
		var already *llmlblock.AlreadyRunningError
		if errors.As(err, &already) {
			os.Exit(1)
		}
		os.Exit(3)
	}
	fmt.Printf("Server on port %d has PID %d\n", port, pid)
}

func launch(port uint16, name string, args ...string) (int, error) {
	lock, err := llmlblock.Acquire(port)
	if err != nil {
		return 0, err
	}
	// Once handed over this closes our copy alone: the server has its own.
	defer lock.Close()
	file, err := lock.File()
	if err != nil {
		return 0, err
	}
	defer file.Close()
	id, err := lock.ServerID()
	if err != nil {
		return 0, err
	}

	server := exec.Command(name, args...)
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	server.ExtraFiles = []*os.File{file}
	// Together, these let `llmlb stop` end workers that the server leaves behind.
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	server.Env = append(os.Environ(),
		fmt.Sprintf("%s=%d", llmlblock.GuardedPortEnv, port),
		fmt.Sprintf("%s=%s", llmlblock.ServerIDEnv, id))
	if err := server.Start(); err != nil {
		return 0, err
	}
	if err := lock.HandOver(server.Process.Pid); err != nil {
		_ = server.Process.Kill()
		_ = server.Wait()
		return 0, err
	}
	return server.Process.Pid, nil
}
