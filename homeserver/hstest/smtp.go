package hstest

import (
	"bufio"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/textproto"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
)

// Mailbox is a mail server that keeps what it gets: just enough SMTP (RFC 5321) for tests that need no real one.
type Mailbox struct {
	Address string // host:port

	t     testing.TB
	mu    sync.Mutex
	mails []Mail
	fail  int // how many of the next mails are refused for the moment
	come  chan struct{}
}

// Mail is a mail that came.
type Mail struct {
	From, To string
	Header   mail.Header
	Subject  string // decoded
	Text     string // the plain part
	HTML     string
}

var linkPattern = regexp.MustCompile(`https?://\S+/_moothall/email/validate\?(\S+)`)

// Link is the query of the link in the mail, "" if it has none.
func (m Mail) Link() string {
	if found := linkPattern.FindStringSubmatch(m.Text); found != nil {
		return found[1]
	}
	return ""
}

// StartMailbox starts a mail server that is stopped with the test.
func StartMailbox(t testing.TB) *Mailbox {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &Mailbox{Address: l.Addr().String(), t: t, come: make(chan struct{}, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() { b.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return b
}

// Option makes a server send its mail here.
func (b *Mailbox) Option() Option {
	return func(c *homeserver.Config) {
		c.Email.Server, c.Email.TLS, c.Email.From = b.Address, "none", "Moothall <noreply@example.org>"
	}
}

// FailNext makes the next n mails fail for the moment.
func (b *Mailbox) FailNext(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = n
}

// Mails are all that came so far.
func (b *Mailbox) Mails() []Mail {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Mail(nil), b.mails...)
}

// Next waits for the next mail to an address and takes it out of the box.
func (b *Mailbox) Next(t testing.TB, to string) Mail {
	t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		b.mu.Lock()
		for i, m := range b.mails {
			if m.To == to {
				b.mails = append(b.mails[:i:i], b.mails[i+1:]...)
				b.mu.Unlock()
				return m
			}
		}
		b.mu.Unlock()
		select {
		case <-b.come:
		case <-deadline:
			t.Fatalf("no mail to %s came", to)
		}
	}
}

func (b *Mailbox) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute)) // a test that hangs shows by itself
	r := textproto.NewReader(bufio.NewReader(c))
	say := func(line string) bool {
		_, err := io.WriteString(c, line+"\r\n")
		return err == nil
	}
	say("220 mailbox ESMTP")
	var m Mail
	for {
		line, err := r.ReadLine()
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO", "HELO":
			say("250 mailbox")
		case "MAIL":
			m = Mail{From: between(arg)}
			say("250 ok")
		case "RCPT":
			if m.To = between(arg); strings.HasPrefix(m.To, "refused") {
				say("550 no such mailbox")
				continue
			}
			say("250 ok")
		case "DATA":
			say("354 go on")
			body, err := io.ReadAll(r.DotReader())
			if err != nil {
				return
			}
			if b.keep(m, string(body)) {
				say("250 kept")
			} else {
				say("451 not now")
			}
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

func between(arg string) string {
	_, rest, _ := strings.Cut(arg, "<")
	out, _, _ := strings.Cut(rest, ">")
	return out
}

func (b *Mailbox) keep(m Mail, raw string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail > 0 {
		b.fail--
		return false
	}
	if err := m.read(raw); err != nil {
		b.t.Errorf("a mail that cannot be read: %v\n%s", err, raw)
	}
	b.mails = append(b.mails, m)
	select {
	case b.come <- struct{}{}:
	default:
	}
	return true
}

// read parses a mail of two alternatives.
func (m *Mail) read(raw string) error {
	msg, err := mail.ReadMessage(strings.NewReader(raw))
	if err != nil {
		return err
	}
	m.Header = msg.Header
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil {
		return err
	}
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	for parts := multipart.NewReader(msg.Body, params["boundary"]); ; {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		body, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			return err
		}
		if strings.HasPrefix(part.Header.Get("Content-Type"), "text/html") {
			m.HTML = string(body)
		} else {
			m.Text = strings.ReplaceAll(string(body), "\r\n", "\n")
		}
	}
}
