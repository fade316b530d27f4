package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/appservices/hooks"
	"github.com/moothall/moothall/homeserver"
)

type hookCmd struct {
	Create      hookCreateCmd    `cmd:"" help:"Make a hook and print its URL and secret, this once."`
	List        hookListCmd      `cmd:"" help:"List hooks and subscriptions."`
	Test        hookTestCmd      `cmd:"" help:"Post a test message through a hook of the running server."`
	Revoke      hookRevokeCmd    `cmd:"" help:"End a hook."`
	Subscribe   hookSubscribeCmd `cmd:"" help:"Deliver chosen events to an HTTP endpoint; prints the secret that signs them, this once."`
	Unsubscribe hookUnsubCmd     `cmd:"" help:"End a subscription. What waits for it goes too."`
	DeadLetters hookDeadCmd      `cmd:"" name:"dead-letters" help:"List the events that a subscription's endpoint did not take."`
	Replay      hookReplayCmd    `cmd:"" help:"Try events again that were given up."`
}

type hookCreateCmd struct {
	Name        string   `arg:"" help:"Its name in the URL: a-z 0-9 . _ -"`
	Target      string   `arg:"" help:"Where messages go: a room (!id or #alias) or a user (@name:server)."`
	Format      string   `help:"What posts look like: generic, cloudevents, grafana, alertmanager, gitlab, wecom, dingtalk, feishu." default:"generic"`
	HMAC        bool     `name:"hmac" help:"Posts are signed with the secret in place of showing it."`
	Secret      string   `help:"The secret that posts come with today. Without it one is made." env:"MOOTHALL_HOOK_SECRET"`
	DisplayName string   `help:"What the account that writes is called."`
	Avatar      string   `help:"Its picture, as mxc:// URI."`
	Template    string   `help:"Makes Markdown of the JSON that is posted: {{.Get \"path\"}}."`
	Key         string   `help:"Template of the key under which later posts change a message."`
	Thread      string   `help:"Template of the key of a thread."`
	Idempotency string   `help:"Template of the idempotency key."`
	Mentions    string   `help:"Template of whom to mention."`
	Notice      bool     `help:"Messages are notices, which notify nobody."`
	Address     []string `help:"From where posts may come: an address or a network. Repeatable." sep:"none"`
	PerMinute   int      `help:"How many posts may come in a minute."`
}

// Run is called by kong.
func (c hookCreateCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	n := hooks.NewHook{
		Name: c.Name, Target: c.Target, Format: c.Format, Secret: c.Secret, DisplayName: c.DisplayName, AvatarURL: c.Avatar,
		Options: hooks.Options{
			Template: c.Template, Key: c.Key, Thread: c.Thread, Idempotency: c.Idempotency, Mentions: c.Mentions, Addresses: c.Address, PerMinute: c.PerMinute,
		},
	}
	if c.HMAC {
		n.Auth = hooks.AuthHMAC
	}
	if c.Notice {
		n.MsgType = "m.notice"
	}
	made, err := homeserver.CreateHook(ctx, cfg, log, n)
	if err != nil {
		return err
	}
	fmt.Printf("url      %s\nsecret   %s\naccount  @%s%s:%s (invite it, unless the room is public)\n", made.URL, made.Secret, cfg.Hooks.BotPrefix, c.Name, cfg.ServerName)
	return nil
}

type hookListCmd struct{}

// Run is called by kong.
func (hookListCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	list, subs, err := homeserver.HookList(ctx, cfg, log)
	if err != nil {
		return err
	}
	at := func(ms int64) string { return time.UnixMilli(ms).Format(time.DateTime) }
	for _, h := range list {
		state := "never used"
		switch {
		case h.Revoked != 0:
			state = "revoked " + at(h.Revoked)
		case h.Used != 0:
			state = "used " + at(h.Used)
		}
		fmt.Printf("hook          %s  %s by %s to %s  made %s, %s\n", h.ID, h.Format, h.Auth, h.Target, at(h.Created), state)
	}
	for _, s := range subs {
		state := "works"
		switch {
		case s.Paused:
			state = "paused"
		case s.FailingSince != 0:
			state = "failing since " + at(s.FailingSince) + ": " + s.LastError
		}
		fmt.Printf("subscription  %s  %s to %s  %d delivered, %d waiting, %d dead; %s\n", s.ID, homeserver.HookFilter(s), s.URL, s.Delivered, s.Waiting, s.Dead, state)
	}
	return nil
}

type hookTestCmd struct {
	Name string `arg:"" help:"The hook."`
	URL  string `help:"Where the server is reached. Without it the configured public_url."`
	Body string `help:"What to post. Without it a sample of the hook's format."`
}

// Run is called by kong.
func (c hookTestCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	if c.URL == "" {
		c.URL = cfg.PublicURL
	}
	if c.URL == "" {
		return errors.New("no public_url is configured: say --url")
	}
	answer, err := homeserver.TestHook(ctx, cfg, log, c.Name, c.URL, c.Body)
	if err == nil {
		fmt.Println(answer)
	}
	return err
}

type hookRevokeCmd struct {
	Name string `arg:"" help:"The hook."`
}

// Run is called by kong.
func (c hookRevokeCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	return homeserver.RevokeHook(ctx, cfg, log, c.Name, false)
}

type hookSubscribeCmd struct {
	Name      string   `arg:"" help:"Its name: a-z 0-9 . _ -"`
	URL       string   `arg:"" help:"The endpoint."`
	Room      []string `help:"Only events of this room. Repeatable." sep:"none"`
	Type      []string `help:"Only events of this type; m.room.* is all that begin so. Repeatable." sep:"none"`
	Sender    []string `help:"Only events of this user. Repeatable." sep:"none"`
	NotSender []string `help:"No events of this user. Repeatable." sep:"none"`
}

// Run is called by kong.
func (c hookSubscribeCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	n := hooks.NewSubscription{Name: c.Name, URL: c.URL, Filter: hooks.Filter{Types: c.Type}}
	for _, r := range c.Room {
		n.Rooms = append(n.Rooms, id.RoomID(r))
	}
	for _, u := range c.Sender {
		n.Senders = append(n.Senders, id.UserID(u))
	}
	for _, u := range c.NotSender {
		n.NotSenders = append(n.NotSenders, id.UserID(u))
	}
	secret, err := homeserver.SubscribeHook(ctx, cfg, log, n)
	if err != nil {
		return err
	}
	fmt.Printf("secret  %s\n", secret)
	return nil
}

type hookUnsubCmd struct {
	Name string `arg:"" help:"The subscription."`
}

// Run is called by kong.
func (c hookUnsubCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	return homeserver.RevokeHook(ctx, cfg, log, c.Name, true)
}

type hookDeadCmd struct {
	Name string `arg:"" help:"The subscription."`
}

// Run is called by kong.
func (c hookDeadCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	list, err := homeserver.DeadHookLetters(ctx, cfg, log, c.Name)
	if err != nil {
		return err
	}
	for _, d := range list {
		fmt.Printf("%d  given up %s after %d attempts: %s\n", d.Pos, time.UnixMilli(d.Dead).Format(time.DateTime), d.Attempts, d.Error)
	}
	return nil
}

type hookReplayCmd struct {
	Name     string `arg:"" help:"The subscription."`
	Position int64  `arg:"" optional:"" help:"One event, as dead-letters shows it. Without it all."`
}

// Run is called by kong.
func (c hookReplayCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	n, err := homeserver.ReplayHook(ctx, cfg, log, c.Name, c.Position)
	if err == nil {
		fmt.Printf("%d events are tried again\n", n)
	}
	return err
}
