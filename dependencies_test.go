package commitcast_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// licences are those that a dependency may have, by a sentence that only they have. Who uses the binary has to do no more than
// name them; MPL-2.0 asks for the source of its own files, which we do not change.
var licences = map[string]string{
	"MIT":          "Permission is hereby granted, free of charge, to any person obtaining a copy",
	"ISC":          "Permission to use, copy, modify, and distribute this software for any purpose with or without fee is hereby granted",
	"BSD-2 and -3": "Redistribution and use in source and binary forms, with or without modification, are permitted provided",
	"Apache-2.0":   "Apache License Version 2.0, January 2004",
	"MPL-2.0":      "Mozilla Public License Version 2.0",
	"FTL":          "The FreeType License, which is similar to the original BSD license with an advertising clause", // of the plots of `make bench`
}

// Every module that is built, tested or linted with has a licence that SECURITY.md admits.
func TestLicences(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-test", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}", "./...", "honnef.co/go/tools/cmd/staticcheck").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(lines)
	lines = slices.Compact(lines)
	if len(lines) < 20 {
		t.Fatalf("go list knows %d modules only", len(lines))
	}
	for _, line := range lines {
		module, dir, _ := strings.Cut(line, " ")
		if licence := licenceOf(dir); licence == "" {
			t.Errorf("%s has no licence that is admitted; see SECURITY.md", module)
		}
	}
	if got := licenceOf(t.TempDir()); got != "" {
		t.Errorf("nothing is taken for %s", got)
	}
}

// licenceOf is the licence in a folder; "" if there is none that is admitted.
func licenceOf(dir string) string {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		name := strings.ToLower(f.Name())
		if !strings.HasPrefix(name, "license") && !strings.HasPrefix(name, "licence") && !strings.HasPrefix(name, "copying") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			continue
		}
		plain := strings.Join(strings.Fields(string(text)), " ")
		for licence, says := range licences {
			if strings.Contains(plain, says) {
				return licence
			}
		}
	}
	return ""
}
