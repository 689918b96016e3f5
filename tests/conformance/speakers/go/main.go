// Speaks the protocol for the Go package.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/llmlb/llmlb-lock/go/llmlblock"
)

var (
	dir  = llmlblock.Dir("")
	held = map[uint16]*llmlblock.Lock{}
)

func handOver(lock *llmlblock.Lock, words []string) (string, error) {
	file, err := lock.File()
	if err != nil {
		return "", err
	}
	defer file.Close()
	command := exec.Command(words[0], words[1:]...)
	command.ExtraFiles = []*os.File{file}
	if err := command.Start(); err != nil {
		return "", err
	}
	return fmt.Sprintf("handed %d", command.Process.Pid), lock.HandOver(command.Process.Pid)
}

func answer(request string, port uint16, command []string) (string, error) {
	lock := held[port]
	switch request {
	case "list":
		servers, err := dir.Servers()
		text := "list"
		for _, server := range servers {
			if server.State == llmlblock.Running {
				text += fmt.Sprintf(" %d=%d", server.Port, server.Info.Pid)
			}
		}
		return text, err
	case "acquire":
		lock, err := dir.Acquire(port)
		if err == nil {
			held[port] = lock
		}
		return "acquired", err
	case "read":
		info, err := dir.Read(port)
		if err != nil || info == nil {
			return "none", err
		}
		return fmt.Sprintf("info %d %s", info.Pid, info.StartedAt.Format(time.RFC3339Nano)), nil
	}
	if lock == nil {
		return "error nothing is held there", nil
	}
	switch request {
	case "hold":
		return "holding", lock.Verify()
	case "release":
		delete(held, port)
		return "released", lock.Close()
	case "hand_over":
		return handOver(lock, command)
	}
	return "error no such request", nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		port := uint64(0)
		if len(words) > 1 {
			port, _ = strconv.ParseUint(words[1], 10, 16)
		}
		said, err := answer(words[0], uint16(port), words[min(2, len(words)):])
		var running *llmlblock.AlreadyRunningError
		switch {
		case err == nil:
		case errors.As(err, &running):
			said = fmt.Sprintf("refused %d", running.Pid)
		case errors.Is(err, llmlblock.ErrHeldByUnknown):
			said = "held"
		case errors.Is(err, llmlblock.ErrCorrupted):
			said = "corrupted"
		case errors.Is(err, llmlblock.ErrLost):
			said = "lost"
		default:
			said = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Println(said)
	}
}
