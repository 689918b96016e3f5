module github.com/llmlb/llmlb-lock/examples/go

go 1.22
