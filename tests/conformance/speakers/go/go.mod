module github.com/llmlb/llmlb-lock/tests/conformance/speakers/go

go 1.22

require github.com/llmlb/llmlb-lock/go v0.0.0

replace github.com/llmlb/llmlb-lock/go => ../../../../go
