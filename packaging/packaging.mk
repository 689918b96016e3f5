# What is installed beside the libraries: the program, its manual pages, completions, licences, and
# the systemd unit where there may be a systemd.
#   program          the program, as `make install` installs it
#   install-program  a part of install; uninstall-program
#   test-install     into a directory, and away again
#   deb              Debian packages, in target/deb: program, C library, its -dev
#   test-deb         into a fresh root, used there, and away again; lint
#   wheels           the Python packages of the program and of the library, in target/dist
#   test-wheels      the same as quick builds: installed, and run, and what the sdists build, too;
#                    WHEELS_PROFILE=release for what is published
#   check-units      the systemd unit and the tmpfiles.d lines, where there is a systemd
#
# Set by the caller where the defaults do not fit:
#   PREFIX, DESTDIR  where things are put
#   LLMLB_PROGRAM    one that has been built already; it is run to print what is installed with it

PREFIX ?= /usr/local

test: test-install test-deb test-wheels
quality-checks: check-units
install: install-program
uninstall: uninstall-program

.PHONY: program install install-program uninstall uninstall-program test-install check-units \
    deb test-deb wheels test-wheels

program:
	$(CARGO) build --release -p llmlb

ifeq ($(origin LLMLB_PROGRAM),undefined)
LLMLB_PROGRAM := $(TARGET)/release/llmlb
install-program wheels: program
endif

# Whose code is in what is built; maturin finds it beside its pyproject.toml.
THIRD_PARTY := $(TARGET)/packaging/LICENSE-THIRD-PARTY

$(THIRD_PARTY): Cargo.lock packaging/third_party.py
	mkdir -p $(dir $@)
	$(PYTHON) packaging/third_party.py text $(CARGO) > $@.new
	mv $@.new $@

cli/LICENSE-THIRD-PARTY python/LICENSE-THIRD-PARTY: $(THIRD_PARTY)
	cp $< $@

PROGRAM_COMMANDS := serve stop status cluster completions man
PROGRAM_PAGES := $(addprefix share/man/man1/,llmlb.1 $(PROGRAM_COMMANDS:%=llmlb-%.1))
PROGRAM_BASH := share/bash-completion/completions/llmlb
PROGRAM_ZSH := share/zsh/site-functions/_llmlb
PROGRAM_FISH := share/fish/vendor_completions.d/llmlb.fish
PROGRAM_DOCS := share/doc/llmlb
PROGRAM_UNIT := lib/systemd/system/llmlb@.service
PROGRAM_TMPFILES := lib/tmpfiles.d/llmlb.conf

# What is written: where, and by which command.
define program_write
	$(2) > "$(DESTDIR)$(PREFIX)/$(1)"
	chmod 644 "$(DESTDIR)$(PREFIX)/$(1)"

endef

install-program: $(THIRD_PARTY)
	install -d "$(DESTDIR)$(PREFIX)/bin" $(foreach file,$(firstword $(PROGRAM_PAGES)) $(PROGRAM_BASH) \
	    $(PROGRAM_ZSH) $(PROGRAM_FISH),"$(DESTDIR)$(PREFIX)/$(dir $(file))") \
	    "$(DESTDIR)$(PREFIX)/$(PROGRAM_DOCS)"
	install -m 755 $(LLMLB_PROGRAM) "$(DESTDIR)$(PREFIX)/bin/llmlb"
	$(call program_write,share/man/man1/llmlb.1,$(LLMLB_PROGRAM) man)
	$(foreach command,$(PROGRAM_COMMANDS),$(call program_write,share/man/man1/llmlb-$(command).1,$(LLMLB_PROGRAM) man $(command)))
	$(call program_write,$(PROGRAM_BASH),$(LLMLB_PROGRAM) completions bash)
	$(call program_write,$(PROGRAM_ZSH),$(LLMLB_PROGRAM) completions zsh)
	$(call program_write,$(PROGRAM_FISH),$(LLMLB_PROGRAM) completions fish)
	install -m 644 LICENSE LICENSE-APACHE LICENSE-MIT $(THIRD_PARTY) packaging/example.conf packaging/llmlb.logrotate \
	    "$(DESTDIR)$(PREFIX)/$(PROGRAM_DOCS)"
ifeq ($(shell uname -s),Linux)
	install -d $(foreach file,$(PROGRAM_UNIT) $(PROGRAM_TMPFILES),"$(DESTDIR)$(PREFIX)/$(dir $(file))")
	$(call program_write,$(PROGRAM_UNIT),sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/llmlb@.service)
	install -m 644 packaging/llmlb.tmpfiles "$(DESTDIR)$(PREFIX)/$(PROGRAM_TMPFILES)"
endif

uninstall-program:
	rm -f $(foreach file,bin/llmlb $(PROGRAM_PAGES) $(PROGRAM_BASH) $(PROGRAM_ZSH) $(PROGRAM_FISH) \
	    $(PROGRAM_UNIT) $(PROGRAM_TMPFILES),"$(DESTDIR)$(PREFIX)/$(file)")
	rm -rf "$(DESTDIR)$(PREFIX)/$(PROGRAM_DOCS)"

# With the program of the tests, as that of a release is a long build.
test-install: cli
	MAKE="$(MAKE)" packaging/install.sh $(LLMLB_BIN) $(TARGET)/packaging/install

check-units: cli
	packaging/check.sh $(LLMLB_BIN) $(TARGET)/packaging/units

deb:
	MAKE="$(MAKE)" packaging/deb.sh $(TARGET)/deb $(FFI_VERSION)

test-deb: cli
	MAKE="$(MAKE)" packaging/test-deb.sh $(LLMLB_BIN) $(TARGET)/packaging/deb $(FFI_VERSION)

WHEELS_VENV := $(TARGET)/venv-wheels

$(WHEELS_VENV)/ready: packaging/requirements.txt
	$(PYTHON) -m venv --clear $(WHEELS_VENV)
	$(WHEELS_VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

wheels: $(WHEELS_VENV)/ready cli/LICENSE-THIRD-PARTY python/LICENSE-THIRD-PARTY
	MAKE="$(MAKE)" LLMLB_PROGRAM="$(LLMLB_PROGRAM)" packaging/wheels.sh build $(WHEELS_VENV) $(TARGET)/dist

WHEELS_PROFILE ?= dev

test-wheels: cli $(WHEELS_VENV)/ready cli/LICENSE-THIRD-PARTY python/LICENSE-THIRD-PARTY
	for what in build test; do \
	    MAKE="$(MAKE)" LLMLB_PROGRAM="$(LLMLB_BIN)" PROFILE="$(WHEELS_PROFILE)" \
	        packaging/wheels.sh $$what $(WHEELS_VENV) $(TARGET)/packaging/wheels; \
	done
