module github.com/llmlb/llmlb-lock/go

go 1.22
