# What the program is installed with.
#   check-units   the systemd unit and the tmpfiles.d lines, where there is a systemd

quality-checks: check-units

.PHONY: check-units

check-units: cli
	packaging/check.sh $(LLMLB_BIN) $(TARGET)/packaging/units
