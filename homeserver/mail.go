package homeserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net"
	netmail "net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/wneessen/go-mail"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
)

//go:embed mails
var mailFiles embed.FS

// mailText is the text of one kind of mail in one language; %s is the server's name.
type mailText struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
	Button  string `json:"button"`
	After   string `json:"after"`
}

// mailer sends mail through the configured server.
type mailer struct {
	serverName, publicURL string
	from                  *netmail.Address
	host                  string
	options               []mail.Option
	implicitTLS           bool
	texts                 map[string]map[string]mailText // by language and kind
	page                  *template.Template
}

// newMailer gives the func by which mail is sent; nil where no mail server is configured.
func newMailer(cfg *Config) (func(ctx context.Context, m account.Mail) error, error) {
	if cfg.Email.Server == "" {
		return nil, nil
	}
	host, portText, err := net.SplitHostPort(cfg.Email.Server)
	if err != nil {
		return nil, fmt.Errorf("email.server: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("email.server: %w", err)
	}
	m := &mailer{serverName: cfg.ServerName, publicURL: cfg.PublicURL, texts: map[string]map[string]mailText{}}
	if m.from, err = netmail.ParseAddress(cfg.Email.From); err != nil {
		return nil, fmt.Errorf("email.from: %w", err)
	}
	outside, err := cfg.outsideClient()
	if err != nil {
		return nil, err
	}
	options := []mail.Option{
		mail.WithPort(port), mail.WithTimeout(mailConnectTimeout), mail.WithHELO(heloName(cfg.ServerName)), mail.WithoutNoop(),
		mail.WithTLSConfig(&tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: outside.RootCAs}),
	}
	auth := mail.SMTPAuthAutoDiscover
	switch cfg.Email.TLS {
	case "implicit":
		options = append(options, mail.WithSSL())
	case "none":
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
		auth = mail.SMTPAuthPlainNoEnc // what the operator has asked for; discovery would refuse it
	default:
		options = append(options, mail.WithTLSPolicy(mail.TLSMandatory))
	}
	if cfg.Email.Username != "" {
		options = append(options, mail.WithSMTPAuth(auth), mail.WithUsername(cfg.Email.Username), mail.WithPassword(string(cfg.Email.Password)))
	}
	if _, err = mail.NewClient(host, options...); err != nil {
		return nil, fmt.Errorf("email: %w", err)
	}
	m.host, m.options, m.implicitTLS = host, options, cfg.Email.TLS == "implicit"
	for _, lang := range []string{"en", "zh"} {
		b, err := mailFiles.ReadFile("mails/" + lang + ".json")
		if err != nil {
			return nil, err
		}
		texts := map[string]mailText{}
		if err := json.Unmarshal(b, &texts); err != nil {
			return nil, fmt.Errorf("mails/%s.json: %w", lang, err)
		}
		m.texts[lang] = texts
	}
	if m.page, err = template.ParseFS(mailFiles, "mails/mail.html"); err != nil {
		return nil, err
	}
	return m.send, nil
}

const mailConnectTimeout = minute / 4

// heloName is the server's name without its port.
func heloName(serverName string) string {
	if host, _, err := net.SplitHostPort(serverName); err == nil {
		return host
	}
	return serverName
}

// mailData is what the template may show.
type mailData struct {
	Lang, Subject, ServerName, Text, Button, After, Link, Code string
	Facts                                                      []string
	User                                                       id.UserID
}

func (m *mailer) compose(in account.Mail) (mailData, error) {
	t, ok := m.texts[in.Lang][in.Kind]
	if !ok {
		return mailData{}, fmt.Errorf("%w: there is no text %q in the language %q", account.ErrMailRefused, in.Kind, in.Lang)
	}
	out := mailData{
		Lang: in.Lang, Subject: fmt.Sprintf(t.Subject, m.serverName), ServerName: m.serverName,
		Text: fmt.Sprintf(t.Text, m.serverName), Button: t.Button, After: t.After, User: in.Data.User, Code: in.Data.Code, Facts: in.Data.Facts,
	}
	if in.Data.Token != "" {
		path := emailPagePath
		if in.Kind == account.MailUnread {
			path = emailStopPath
		}
		out.Link = m.publicURL + path + "?" + url.Values{"token": {in.Data.Token}, "lang": {in.Lang}}.Encode()
	}
	return out, nil
}

// plain is the mail for readers that show no HTML.
func (d *mailData) plain() string {
	parts := []string{d.Text}
	if d.User != "" {
		parts = append(parts, string(d.User))
	}
	if len(d.Facts) > 0 {
		parts = append(parts, strings.Join(d.Facts, "\n"))
	}
	if d.Code != "" {
		parts = append(parts, d.Code)
	}
	if d.Link != "" {
		parts = append(parts, d.Button+":\n"+d.Link)
	}
	return strings.Join(append(parts, d.After), "\n\n") + "\n"
}

// send sends one mail. What the mail server refuses for good is account.ErrMailRefused.
func (m *mailer) send(ctx context.Context, in account.Mail) error {
	data, err := m.compose(in)
	if err != nil {
		return err
	}
	var html bytes.Buffer
	if err := m.page.Execute(&html, data); err != nil {
		return fmt.Errorf("%w: %w", account.ErrMailRefused, err)
	}
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	msg.FromMailAddress(m.from)
	if err := msg.To(in.To); err != nil {
		return fmt.Errorf("%w: %w", account.ErrMailRefused, err)
	}
	msg.Subject(data.Subject)
	msg.SetDate()
	msg.SetMessageIDWithValue(strings.ToLower(in.ID) + "@" + heloName(m.serverName)) // the same at every attempt
	msg.SetGenHeader("Auto-Submitted", "auto-generated")                             // RFC 3834: no absence notes come back
	if in.Kind == account.MailUnread {                                               // RFC 2369, RFC 8058
		msg.SetGenHeader("List-Unsubscribe", "<"+data.Link+">")
		msg.SetGenHeader("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
	}
	msg.SetBodyString(mail.TypeTextPlain, data.plain())
	msg.AddAlternativeString(mail.TypeTextHTML, html.String())
	err = m.deliver(ctx, msg)
	var refused *mail.SendError
	if errors.As(err, &refused) && refused.ErrorCode()/100 == 5 {
		return fmt.Errorf("%w: %w", account.ErrMailRefused, err)
	}
	return err
}

// deliver speaks with the mail server. go-mail leaves the connection open where the server offers no TLS or refuses the
// password, so it is closed here. With implicit TLS go-mail has to dial by itself, or it would not know of the encryption;
// there it is the garbage collector that closes.
func (m *mailer) deliver(ctx context.Context, msg *mail.Msg) error {
	options := m.options
	if !m.implicitTLS {
		var conn net.Conn
		options = append(slices.Clone(options), mail.WithDialContextFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
			var err error
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return conn, err
		}))
		defer func() {
			if conn != nil {
				_ = conn.Close() // closed already where all went well
			}
		}()
	}
	client, err := mail.NewClient(m.host, options...)
	if err != nil {
		return err
	}
	return client.DialAndSendWithContext(ctx, msg)
}
