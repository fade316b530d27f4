package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/moothall/moothall/homeserver"
)

type userCmd struct {
	Role        userRoleCmd        `cmd:"" help:"Show an account's roles, or give or take one."`
	Create      userCreateCmd      `cmd:"" help:"Make an account."`
	SetPassword userSetPasswordCmd `cmd:"" name:"set-password" help:"Give an account a new password and end its sessions."`
	SignOut     userSignOutCmd     `cmd:"" name:"sign-out" help:"End all sessions of an account, on our own pages too; devices and their keys stay."`

	ResetFactors userResetFactorsCmd `cmd:"" name:"reset-factors" help:"Take all second factors from an account whose user has lost them."`
}

type userCreateCmd struct {
	Name          string `arg:"" help:"Username, such as alice."`
	Admin         bool   `help:"Make the account an administrator of the server."`
	MustChange    bool   `name:"must-change" help:"The user has to choose another password before the first sign-in."`
	PasswordStdin bool   `name:"password-stdin" help:"Read the password from standard input instead of asking."`
}

// Run is called by kong.
func (u userCreateCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	password, err := readPassword(ctx, u.PasswordStdin)
	if err != nil {
		return err
	}
	create := homeserver.CreateUser
	if u.MustChange {
		create = homeserver.CreateInitialUser
	}
	user, err := create(ctx, cfg, log, u.Name, password, u.Admin)
	if err != nil {
		return err
	}
	fmt.Println(user)
	return nil
}

type userSetPasswordCmd struct {
	Name          string `arg:"" help:"Username, such as alice."`
	MustChange    bool   `name:"must-change" help:"The user has to choose another password at the next sign-in."`
	PasswordStdin bool   `name:"password-stdin" help:"Read the password from standard input instead of asking."`
}

// Run is called by kong.
func (u userSetPasswordCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	password, err := readPassword(ctx, u.PasswordStdin)
	if err != nil {
		return err
	}
	set := homeserver.SetPassword
	if u.MustChange {
		set = homeserver.SetInitialPassword
	}
	user, err := set(ctx, cfg, log, u.Name, password)
	if err != nil {
		return err
	}
	fmt.Println(user)
	return nil
}

type userSignOutCmd struct {
	Name string `arg:"" help:"Username, such as alice."`
}

// Run is called by kong.
func (u userSignOutCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	user, err := homeserver.SignOut(ctx, cfg, log, u.Name)
	if err != nil {
		return err
	}
	fmt.Println(user)
	return nil
}

type userRoleCmd struct {
	Name string `arg:"" help:"Username, such as alice."`
	Role string `arg:"" optional:"" help:"admin, security, auditor or compliance. Without it the account's roles are shown."`
	Off  bool   `help:"Take the role away."`
}

// Run is called by kong.
func (u userRoleCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	user, roles, err := homeserver.SetRole(ctx, cfg, log, u.Name, u.Role, !u.Off)
	if err != nil {
		return err
	}
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	fmt.Println(user, strings.Join(names, " "))
	return nil
}

// readPassword reads one line from standard input, or asks twice on a terminal without showing what is typed.
func readPassword(ctx context.Context, fromStdin bool) (string, error) {
	if fromStdin {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil && (!errors.Is(err, io.EOF) || line == "") {
			return "", errors.New("no password was given on standard input")
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	first, err := ask(ctx, "Password: ")
	if err != nil {
		return "", err
	}
	second, err := ask(ctx, "Again: ")
	if err == nil && first != second {
		err = errors.New("the two passwords are not the same")
	}
	return first, err
}

// ask reads a hidden line from the terminal; Ctrl-C leaves the terminal as it was.
func ask(ctx context.Context, prompt string) (string, error) {
	fd := int(os.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", errors.New("there is no terminal to ask for the password on: use --password-stdin")
	}
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	fmt.Fprint(os.Stderr, prompt)
	go func() { // ends with the process if nobody types
		text, err := term.ReadPassword(fd)
		answers <- answer{text, err}
	}()
	select {
	case a := <-answers:
		fmt.Fprintln(os.Stderr)
		return string(a.text), a.err
	case <-ctx.Done():
		return "", errors.Join(errors.New("interrupted"), term.Restore(fd, before))
	}
}
