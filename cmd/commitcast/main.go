// Command commitcast carries Postgres commits to connected clients: workers, broadcasters and the schema in one
// binary. See commitcast --help.
package main

import (
	"os"

	"github.com/commitcast/commitcast/internal/app"
)

func main() { os.Exit(app.Main(os.Args[1:], os.Stdout, os.Stderr)) }
