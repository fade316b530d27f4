// Moothall is a Matrix homeserver for organisations.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/search/bleve"
	"github.com/moothall/moothall/search/extract"
)

// defaultFile is read if it is there and no other is named.
const defaultFile = "moothall.yaml"

type cli struct {
	Config string `help:"Configuration file. Without it ./moothall.yaml if there is one, else the defaults." short:"c" placeholder:"FILE" env:"MOOTHALL_CONFIG" type:"path"`

	Serve     serveCmd     `cmd:"" help:"Run the homeserver."`
	ConfigCmd configCmd    `cmd:"" name:"config" help:"Look at the configuration."`
	User      userCmd      `cmd:"" help:"Manage accounts."`
	HR        hrCmd        `cmd:"" name:"hr" help:"Manage what HR systems may do."`
	Hook      hookCmd      `cmd:"" help:"Manage the addresses that systems post messages to, and the endpoints that events go out to."`
	Directory directoryCmd `cmd:"" help:"Look after the company's directories (LDAP, Active Directory)."`
	Audit     auditCmd     `cmd:"" help:"Read and verify the audit log."`
	Archive   archiveCmd   `cmd:"" help:"Verify the archive of messages."`
	Search    searchCmd    `cmd:"" help:"Look after the search index."`
	Backup    backupCmd    `cmd:"" help:"Write a backup of database, media and keys, while the server runs or not."`
	Restore   restoreCmd   `cmd:"" help:"Bring a backup back into an empty database and media directory."`
	Bench     benchCmd     `cmd:"" help:"Measure a homeserver on this machine through its client-server API."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// load reads the configuration and makes the logger it asks for.
func (c *cli) load() (homeserver.Config, *slog.Logger, error) {
	file := c.Config
	if file == "" {
		if _, err := os.Stat(defaultFile); err == nil {
			file = defaultFile
		} else if !errors.Is(err, fs.ErrNotExist) {
			return homeserver.Config{}, nil, err
		}
	}
	cfg, err := homeserver.LoadConfig(file, os.Environ())
	if err != nil {
		return cfg, nil, err
	}
	log := cfg.Logger(os.Stderr)
	slog.SetDefault(log)
	return cfg, log, nil
}

func main() {
	extract.Child()     // this process may be the reader of one file
	account.HashChild() // or one that hashes passwords
	bleve.Child()       // or the one that keeps the search index
	os.Exit(run(os.Args[1:]))
}

// run is main with an exit code: 0, or 1 after one line that says what is wrong.
func run(args []string) int {
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit := -1
	parser, err := kong.New(&c, kong.Name("moothall"), kong.Description("A Matrix homeserver for organisations."),
		kong.UsageOnError(), kong.Vars{"phases": benchPhases()}, kong.Exit(func(code int) { exit = code }), kong.BindTo(ctx, (*context.Context)(nil)))
	if err != nil {
		return complain(err)
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if exit >= 0 {
		return exit // --help
	}
	if err != nil {
		return complain(err)
	}
	if err := k.Run(&c); err != nil {
		return complain(err)
	}
	return 0
}

// complain prints an error as one line.
func complain(err error) int {
	text := err.Error()
	if e := mxerr.As(err); e != nil && e.Status < 500 {
		text = e.Message // the errcode is for clients
	}
	fmt.Fprintln(os.Stderr, "moothall: "+strings.Join(strings.Fields(strings.ReplaceAll(text, "\n", "; ")), " "))
	return 1
}
