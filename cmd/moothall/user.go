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
	Create      userCreateCmd      `cmd:"" help:"Make an account."`
	SetPassword userSetPasswordCmd `cmd:"" name:"set-password" help:"Give an account a new password and end its sessions."`
}

type userCreateCmd struct {
	Name          string `arg:"" help:"Username, such as alice."`
	Admin         bool   `help:"Make the account an administrator of the server."`
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
	user, err := homeserver.CreateUser(ctx, cfg, log, u.Name, password, u.Admin)
	if err != nil {
		return err
	}
	fmt.Println(user)
	return nil
}

type userSetPasswordCmd struct {
	Name          string `arg:"" help:"Username, such as alice."`
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
	user, err := homeserver.SetPassword(ctx, cfg, log, u.Name, password)
	if err != nil {
		return err
	}
	fmt.Println(user)
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
