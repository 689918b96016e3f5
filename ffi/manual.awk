# Writes the manual pages of the C library, made from the header: llmlb_lock(3), and one for each
# function.
#   awk -v out=DIRECTORY -v version=VERSION -v date=YYYY-MM-DD -f manual.awk llmlb_lock.h
# What there is on Windows alone has none.

function escaped(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    return text
}

# Text in lines of an editor's width; what stands between ` is bold.
function fill(text, file, words, count, number, line, word, bold) {
    count = split(text, words, " ")
    line = ""
    bold = 0
    for (number = 1; number <= count; number++) {
        word = escaped(words[number])
        while (word ~ /`/) {
            bold = !bold
            sub(/`/, bold ? "\\fB" : "\\fR", word)
        }
        # At the start of a line these would be commands.
        if (word ~ /^[.']/) word = "\\&" word
        if (line != "" && length(line) + 1 + length(word) > 79) {
            print line > file
            line = ""
        }
        line = line (line == "" ? "" : " ") word
    }
    if (line != "") print line > file
}

# The comment's paragraphs, lists and indented programs.
function paragraphs(text, file, lines, count, number, line, laid_out, held, started) {
    count = split(text "\n", lines, "\n")
    laid_out = started = 0
    held = ""
    for (number = 1; number <= count; number++) {
        line = lines[number]
        if (line == "" || line ~ /^(- |    )/) {
            fill(held, file)
            held = ""
        }
        if (line ~ /^    / && !laid_out) {
            print ".PP\n.RS 4\n.nf" > file
            laid_out = 1
        } else if (line !~ /^    / && laid_out) {
            print ".fi\n.RE" > file
            laid_out = 0
        }
        if (laid_out) {
            sub(/^    /, "", line)
            print escaped(line) > file
        } else if (line == "") {
            # Lists' items and programs begin by themselves.
            if (started && number < count && lines[number + 1] !~ /^(- |    )/)
                print ".PP" > file
        } else {
            if (line ~ /^- /) {
                print ".IP \\(bu 2" > file
                sub(/^- /, "", line)
            }
            held = held " " line
            started = 1
        }
    }
}

function head(name, about, file) {
    printf ".TH %s 3 %s \"libllmlb_lock %s\" \"Library Functions Manual\"\n", toupper(name), date, version > file
    printf ".SH NAME\n%s \\-\n", name > file
    fill(about, file)
    printf ".SH LIBRARY\nlibllmlb_lock (\\fB\\-lllmlb_lock\\fR; pkg\\-config: llmlb_lock)\n" > file
    printf ".SH SYNOPSIS\n.nf\n.B #include <llmlb_lock.h>\n" > file
}

# The comment's first sentence, without its end.
function summary(text, end) {
    gsub(/\n/, " ", text)
    end = match(text, /[.:;]( |$)/)
    if (end) text = substr(text, 1, end - 1)
    gsub(/`/, "", text)
    return text
}

function page(name, prototype, text, file, lines, count, number) {
    file = out "/" name ".3"
    head(name, summary(text), file)
    print ".PP" > file
    count = split(prototype, lines, "\n")
    for (number = 1; number <= count; number++)
        print "\\fB" escaped(lines[number]) "\\fR" > file
    print ".fi\n.SH DESCRIPTION" > file
    paragraphs(text, file)
    if (prototype ~ /^llmlb_result_t /)
        print ".SH RETURN VALUE\n.B LLMLB_OK\non success, and else what failed: see\n.BR llmlb_result_string (3)\nand\n.BR llmlb_last_error_message (3)." > file
    printf ".SH SEE ALSO\n.BR llmlb_lock (3),\n.BR llmlb (1)\n" > file
    close(file)
    functions[++number_of_functions] = name
    abouts[number_of_functions] = summary(text)
}

/^#if defined\(_WIN32\)/ { windows = 1 }
/^#endif/ { windows = 0 }

# Comments of one line, and of more.
/^\/\* .*\*\/$/ {
    comment = substr($0, 4)
    sub(/ *\*\/$/, "", comment)
    next
}
/^\/\*$/ {
    comment = ""
    inside = 1
    next
}
inside && /^ \*\/$/ {
    inside = 0
    if (!overview) overview = comment
    next
}
inside {
    sub(/^ \* ?/, "")
    comment = comment (comment == "" ? "" : "\n") $0
    next
}
/^(typedef|#)/ { next }
/^[a-z].*[ *]llmlb_[a-z_]*\(/ { prototype = ""; declaring = 1 }
declaring {
    prototype = prototype (prototype == "" ? "" : "\n") $0
    if (/;$/) {
        declaring = 0
        name = prototype
        sub(/\(.*/, "", name)
        sub(/.*[ *]/, "", name)
        if (!windows) page(name, prototype, comment)
    }
}

END {
    file = out "/llmlb_lock.3"
    # What the whole is, without "do not edit".
    sub(/\n\nGenerated from[^\n]*\n/, "\n", overview)
    about = overview
    sub(/^libllmlb_lock: /, "", about)
    head("llmlb_lock", "one server per port, guarded by a kernel-locked lock file", file)
    print ".fi\n.SH DESCRIPTION" > file
    paragraphs(overview, file)
    print ".SH FUNCTIONS" > file
    for (number = 1; number <= number_of_functions; number++) {
        printf ".TP\n.BR %s (3)\n", functions[number] > file
        fill(abouts[number] ".", file)
    }
    print ".SH ENVIRONMENT\n.TP\n.B LLMLB_LOCK_DIR\nThe default lock directory, as an absolute path." > file
    print ".SH SEE ALSO\n.BR llmlb (1),\n.BR flock (2),\n.BR pkg\\-config (1)" > file
    close(file)
}
