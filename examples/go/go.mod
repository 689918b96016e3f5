module github.com/llmlb/llmlb-lock/examples/go

go 1.22

require github.com/llmlb/llmlb-lock/go v0.0.0

// A program of yours has no such line.
replace github.com/llmlb/llmlb-lock/go => ../../go
