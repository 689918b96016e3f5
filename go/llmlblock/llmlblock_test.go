package llmlblock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const port = 8000

// The test program is also the server that some tests start: it guards the port in the directory
// it is told, says so, and serves until its input ends.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TEST_SERVE"); dir != "" {
		if os.Getenv("TEST_IGNORE_SIGTERM") != "" {
			signal.Ignore(syscall.SIGTERM)
		}
		lock, err := Dir(dir).Acquire(port)
		fmt.Println(err)
		io.Copy(io.Discard, os.Stdin)
		lock.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// What a launcher starts is known by the name it is given, when launcher and server are gone.
func TestLeftOversAreEnded(t *testing.T) {
	dir := Dir(t.TempDir())
	lock, err := dir.Acquire(port)
	check(t, err)
	id, err := lock.ServerID()
	check(t, err)
	other, err := lock.ServerID()
	check(t, err)
	if id == other || !strings.HasPrefix(id, "8000.") {
		t.Fatalf("%q, then %q", id, other)
	}
	check(t, lock.Close())
	// The launcher that the name tells of has to be gone: this process is not.
	fields := strings.Split(id, ".")
	gone := exec.Command("true")
	check(t, gone.Run())
	fields[4] = fmt.Sprint(gone.Process.Pid)
	worker := exec.Command("cat")
	worker.Env = append(os.Environ(), ServerIDEnv+"="+strings.Join(fields, "."))
	worker.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	_, err = worker.StdinPipe()
	check(t, err)
	check(t, worker.Start())
	reaped := make(chan error)
	go func() { reaped <- worker.Wait() }()
	ended, err := dir.EndLeftOvers(port, time.Minute)
	check(t, err)
	if ended != 1 {
		t.Fatalf("%d ended", ended)
	}
	if err := <-reaped; err == nil || err.Error() != "signal: terminated" {
		t.Fatal(err)
	}
	outcome, err := dir.Stop(context.Background(), port)
	check(t, err)
	if outcome.Status != NotRunning {
		t.Fatalf("%+v", outcome)
	}
}

// start returns when the server guards the port; to let it go, close what it returns.
func start(t *testing.T, dir Dir, env ...string) (*exec.Cmd, io.Closer) {
	t.Helper()
	server := exec.Command(os.Args[0])
	server.Env = append(append(os.Environ(), "TEST_SERVE="+string(dir)), env...)
	stdin, err := server.StdinPipe()
	check(t, err)
	stdout, err := server.StdoutPipe()
	check(t, err)
	check(t, server.Start())
	t.Cleanup(func() {
		stdin.Close()
		server.Wait()
	})
	if said, _ := bufio.NewReader(stdout).ReadString('\n'); said != "<nil>\n" {
		t.Fatalf("server said %q", said)
	}
	return server, stdin
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%v is not %v", err, target)
	}
}

func refused(t *testing.T, dir Dir) *AlreadyRunningError {
	t.Helper()
	_, err := dir.Acquire(port)
	var already *AlreadyRunningError
	if !errors.As(err, &already) {
		t.Fatalf("not refused: %v", err)
	}
	return already
}

func TestAPortIsGuardedUntilClose(t *testing.T) {
	dir := Dir(t.TempDir())
	before := time.Now().Add(-time.Second)
	lock, err := dir.Acquire(port)
	check(t, err)
	check(t, lock.Verify())
	path, err := lock.Path()
	check(t, err)
	if path != filepath.Join(string(dir), "serve_8000.lock") {
		t.Error(path)
	}
	already := refused(t, dir)
	mine, err := lock.Info()
	check(t, err)
	if already.Info != mine || mine.Pid != os.Getpid() || mine.Port != port {
		t.Errorf("%+v, %+v", already.Info, mine)
	}
	if mine.StartedAt.Before(before) || mine.StartedAt.After(time.Now()) {
		t.Error(mine.StartedAt)
	}
	if !strings.HasPrefix(already.Error(), "Server already running on port 8000 (PID: ") {
		t.Error(already)
	}
	read, err := dir.Read(port)
	check(t, err)
	if *read != mine {
		t.Errorf("%+v", read)
	}
	check(t, lock.Close())
	is(t, lock.Close(), os.ErrClosed)
	if read, err = dir.Read(port); read != nil || err != nil {
		t.Error(read, err)
	}
}

func TestTheDefaultDirectoryIsTheEnvironments(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(LockDirEnv, dir)
	lock, err := Acquire(port)
	check(t, err)
	defer lock.Close()
	refused(t, Dir(dir))
	servers, err := Dir("").Servers()
	check(t, err)
	if len(servers) != 1 || servers[0].State != Running || servers[0].Info.Pid != os.Getpid() {
		t.Errorf("%+v", servers)
	}
}

func TestOneOfManyGoroutinesWins(t *testing.T) {
	dir := Dir(t.TempDir())
	for range 50 {
		var wg sync.WaitGroup
		locks := make([]*Lock, 8)
		errs := make([]error, len(locks))
		for i := range locks {
			wg.Add(1)
			go func() {
				defer wg.Done()
				locks[i], errs[i] = dir.Acquire(port)
			}()
		}
		wg.Wait()
		winners := 0
		for i, lock := range locks {
			var already *AlreadyRunningError
			if lock != nil {
				winners++
				check(t, lock.Close())
			} else if !errors.As(errs[i], &already) || already.Pid != os.Getpid() {
				t.Error(errs[i])
			}
		}
		if winners != 1 {
			t.Fatalf("%d winners", winners)
		}
	}
}

func TestErrorsKeepTheirMessageAmongGoroutines(t *testing.T) {
	dir := Dir(t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		// Each has a directory in its lock file's place.
		port := uint16(port + i)
		check(t, os.Mkdir(filepath.Join(string(dir), fmt.Sprintf("serve_%d.lock", port)), 0o700))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 100 {
				_, err := dir.Acquire(port)
				if !errors.Is(err, ErrAcquireFailed) || !strings.Contains(err.Error(), fmt.Sprint(port)) {
					t.Errorf("port %d: %v", port, err)
				}
			}
		}()
	}
	wg.Wait()
}

func TestErrorsCarryCodeAndErrno(t *testing.T) {
	_, err := Dir("\xff").Acquire(port)
	is(t, err, ErrInvalidUTF8)
	_, err = Dir(t.TempDir()).Acquire(0)
	is(t, err, ErrInvalidPort)
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	_, err = Dir(file).Acquire(port)
	is(t, err, ErrDirectoryCreationFailed)
	is(t, err, syscall.ENOTDIR)

	dir := Dir(t.TempDir())
	lock, err := dir.Acquire(port)
	check(t, err)
	defer lock.Close()
	path, err := lock.Path()
	check(t, err)
	check(t, os.Remove(path))
	is(t, lock.Verify(), ErrLost)
	if ErrLost.Error() != "Lock file was removed or replaced" {
		t.Error(ErrLost.Error())
	}
}

func TestAWaitEndsWithItsContextOrItsHolder(t *testing.T) {
	dir := Dir(t.TempDir())
	server, stdin := start(t, dir)
	if already := refused(t, dir); already.Pid != server.Process.Pid {
		t.Error(already)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := dir.AcquireContext(ctx, port)
	is(t, err, context.DeadlineExceeded)
	_, err = dir.AcquireContext(ctx, port)
	is(t, err, context.DeadlineExceeded) // done before it began

	acquired := make(chan error)
	go func() {
		lock, err := dir.AcquireContext(context.Background(), port)
		if err == nil {
			err = lock.Close()
		}
		acquired <- err
	}()
	stdin.Close()
	check(t, <-acquired)
}

func TestStop(t *testing.T) {
	dir := Dir(t.TempDir())
	ctx := context.Background()
	outcome, err := dir.Stop(ctx, port)
	check(t, err)
	if outcome != (Outcome{Status: NotRunning}) {
		t.Errorf("%+v", outcome)
	}

	// A Go program that holds a lock ends on SIGTERM without clearing up: stopping does it.
	server, _ := start(t, dir)
	outcome, err = dir.Stop(ctx, port)
	check(t, err)
	if outcome.Status != Stopped || outcome.Forced || outcome.Info.Pid != server.Process.Pid {
		t.Errorf("%+v", outcome)
	}

	server, _ = start(t, dir, "TEST_IGNORE_SIGTERM=1")
	cancelled, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = dir.Stop(cancelled, port)
	is(t, err, ErrInterrupted)
	is(t, err, context.DeadlineExceeded)
	if already := refused(t, dir); already.Pid != server.Process.Pid {
		t.Error(already)
	}
	outcome, err = dir.Kill(ctx, port, 10*time.Millisecond)
	check(t, err)
	if outcome.Status != Stopped || !outcome.Forced {
		t.Errorf("%+v", outcome)
	}
}

func TestServersAreListedHoweverMany(t *testing.T) {
	dir := Dir(t.TempDir())
	for i := range 40 {
		lock, err := dir.Acquire(uint16(port + i))
		check(t, err)
		defer lock.Close()
	}
	path := filepath.Join(string(dir), "serve_1.lock")
	check(t, os.WriteFile(path, []byte("junk"), 0o600))
	_, err := dir.Read(1)
	is(t, err, ErrCorrupted)
	servers, err := dir.Servers()
	check(t, err)
	if len(servers) != 41 || servers[0].State != Stale || servers[0].Info != nil {
		t.Fatalf("%+v", servers)
	}
	for i, server := range servers[1:] {
		if server.Port != uint16(port+i) || server.State != Running {
			t.Errorf("%+v", server)
		}
	}
}
