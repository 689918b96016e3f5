# From a Debian machine; the script installs what it needs.
.PHONY: test-windows check-windows check-macos

# Runs core and the program under wine.
test-windows:
	tests/cross.sh test-windows

# Types and lints alone, for the toolchain that Windows releases are built with.
check-windows:
	tests/cross.sh check-windows

# Types and lints alone.
check-macos:
	tests/cross.sh check-macos
