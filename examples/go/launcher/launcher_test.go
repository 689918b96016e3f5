package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/llmlb/llmlb-lock/go/llmlblock"
)

// The test program is the launcher and the server, too.
func TestMain(m *testing.M) {
	switch os.Getenv("TEST_ROLE") {
	case "launcher":
		os.Setenv("TEST_ROLE", "server")
		main()
		os.Exit(0)
	case "server":
		fmt.Println("serving port", os.Getenv(llmlblock.GuardedPortEnv))
		for {
			time.Sleep(time.Hour)
		}
	}
	os.Exit(m.Run())
}

func launcher() *exec.Cmd {
	command := exec.Command(os.Args[0], "8000", os.Args[0])
	command.Env = append(os.Environ(), "TEST_ROLE=launcher")
	return command
}

func TestAServerStaysGuardedWithoutItsLauncher(t *testing.T) {
	t.Setenv(llmlblock.LockDirEnv, t.TempDir())
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	first := launcher()
	first.Stdout, first.Stderr = write, os.Stderr
	err = first.Run()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	output := bufio.NewReader(read)
	pid := 0
	serving := false
	for range 2 { // the server may be first
		line, err := output.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "serving port 8000\n" {
			serving = true
		} else if _, err := fmt.Sscanf(line, "Server on port 8000 has PID %d\n", &pid); err != nil {
			t.Fatal(line)
		}
	}
	if !serving || pid == 0 {
		t.Fatal(serving, pid)
	}
	_, err = llmlblock.Acquire(8000)
	var already *llmlblock.AlreadyRunningError
	if !errors.As(err, &already) || already.Pid != pid {
		t.Fatalf("%v, not refused by %d", err, pid)
	}
	// A process that is only named is refused as well: the kernel lock is what counts.
	file, err := os.Open(filepath.Join(os.Getenv(llmlblock.LockDirEnv), "serve_8000.lock"))
	if err != nil {
		t.Fatal(err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	file.Close()
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatal(err)
	}

	second := launcher()
	var said bytes.Buffer
	second.Stderr = &said
	var exit *exec.ExitError
	if err := second.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatal(err)
	}
	named := fmt.Sprintf("launcher: Server already running on port 8000 (PID: %d, ", pid)
	if !strings.HasPrefix(said.String(), named) {
		t.Fatal(said.String())
	}

	stop(t, pid)
	// The server and all it started are gone.
	if rest, err := io.ReadAll(output); len(rest) > 0 || err != nil {
		t.Fatal(string(rest), err)
	}
	if left, err := llmlblock.Dir("").Read(8000); left != nil || err != nil {
		t.Fatal(left, err)
	}
}

// stop ends the server with the tool at LLMLB_BIN, else with the library.
func stop(t *testing.T, pid int) {
	if tool := os.Getenv("LLMLB_BIN"); tool != "" {
		if output, err := exec.Command(tool, "stop", "--port", "8000").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		return
	}
	outcome, err := llmlblock.Stop(context.Background(), 8000)
	if err != nil || outcome.Status != llmlblock.Stopped || outcome.Info.Pid != pid {
		t.Fatal(outcome, err)
	}
}

func TestACommandThatCannotRunLeavesNothing(t *testing.T) {
	t.Setenv(llmlblock.LockDirEnv, t.TempDir())
	if _, err := launch(8000, "/nonexistent/server"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	lock, err := llmlblock.Acquire(8000)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
}
