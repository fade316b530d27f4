package hooks

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer"
	ghtml "github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/util"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// message is what a post says, whatever form it came in.
type message struct {
	Title       string
	Text        string // as it is
	Markdown    string
	MsgType     string
	Mentions    []string // user ids, localparts, mail addresses or phone numbers
	MentionRoom bool
	Key         string // of the message, for changes
	Thread      string
	Idempotency string
	Attachments []attachment
}

// attachment is a file by its address or its bytes.
type attachment struct {
	URL, Name, Type string
	Data            []byte
	at              string // JSON pointer of it in the post
}

const (
	maxText        = 30_000 // bytes
	maxKey         = 300
	maxAttachments = 10
	maxMentions    = 100
)

// badField is 400 M_BAD_JSON that names the field by its JSON pointer.
func badField(pointer, format string, args ...any) error {
	name := strings.ReplaceAll(strings.TrimPrefix(pointer, "/"), "/", ".")
	return mxerr.BadJSON("'"+name+"' "+fmt.Sprintf(format, args...)).With("path", pointer)
}

// check says what is wrong with a message.
func (m *message) check() error {
	switch n := len(m.Text) + len(m.Markdown) + len(m.Title); {
	case n > maxText:
		return mxerr.TooLarge(fmt.Sprintf("the message has %d bytes; %d are allowed", n, maxText))
	case n == 0 && len(m.Attachments) == 0:
		return badField("/text", "is missing: a message needs text, markdown or attachments")
	case len(m.Key) > maxKey:
		return badField("/key", "may have %d bytes at most", maxKey)
	case len(m.Thread) > maxKey:
		return badField("/thread", "may have %d bytes at most", maxKey)
	case len(m.Idempotency) > maxKey:
		return badField("/idempotency_key", "may have %d bytes at most", maxKey)
	case len(m.Attachments) > maxAttachments:
		return badField("/attachments", "may have %d entries at most", maxAttachments)
	case len(m.Mentions) > maxMentions:
		return badField("/mentions", "may have %d entries at most", maxMentions)
	}
	return nil
}

// markdown makes HTML of Markdown. HTML in it is shown as text, except for what robots' Markdown has of it: colours and
// line breaks. Addresses that could run anything are left out; pictures become links, since Matrix shows uploads only.
var markdown = sync.OnceValue(func() goldmark.Markdown {
	return goldmark.New(
		goldmark.WithExtensions(extension.Table, extension.Strikethrough, extension.Linkify),
		goldmark.WithRendererOptions(ghtml.WithHardWraps(), renderer.WithNodeRenderers(util.Prioritized(nodes{}, 10))),
	)
})

// nodes renders what is not rendered as usual.
type nodes struct{}

// RegisterFuncs implements renderer.NodeRenderer.
func (nodes) RegisterFuncs(r renderer.NodeRendererFuncRegisterer) {
	r.Register(ast.KindImage, renderImage)
	r.Register(ast.KindRawHTML, renderRaw)
	r.Register(ast.KindHTMLBlock, renderBlock)
	r.Register(ast.KindLink, renderLink)
	r.Register(ast.KindAutoLink, renderAutoLink)
}

// safeURL tells whether clients may be given an address to open. Spec: client-server API, "m.room.message msgtypes", schemes.
func safeURL(s []byte) bool {
	u, err := url.Parse(string(s))
	return err == nil && slices.Contains([]string{"https", "http", "ftp", "mailto", "matrix"}, strings.ToLower(u.Scheme))
}

func open(w util.BufWriter, dest []byte) {
	if safeURL(dest) {
		_, _ = w.WriteString(`<a href="` + html.EscapeString(string(dest)) + `">`) // errors of w are seen at its end
	}
}

func closeLink(w util.BufWriter, dest []byte) {
	if safeURL(dest) {
		_, _ = w.WriteString(`</a>`)
	}
}

func renderLink(w util.BufWriter, _ []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if dest := n.(*ast.Link).Destination; entering {
		open(w, dest)
	} else {
		closeLink(w, dest)
	}
	return ast.WalkContinue, nil
}

func renderImage(w util.BufWriter, _ []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	dest := n.(*ast.Image).Destination
	if entering {
		open(w, dest)
		if !n.HasChildren() {
			_, _ = w.WriteString(html.EscapeString(string(dest)))
		}
	} else {
		closeLink(w, dest)
	}
	return ast.WalkContinue, nil
}

func renderAutoLink(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	l := n.(*ast.AutoLink)
	dest := l.URL(source)
	if l.AutoLinkType == ast.AutoLinkEmail && !bytes.HasPrefix(bytes.ToLower(dest), []byte("mailto:")) {
		dest = append([]byte("mailto:"), dest...)
	}
	open(w, dest)
	_, _ = w.WriteString(html.EscapeString(string(l.Label(source))))
	closeLink(w, dest)
	return ast.WalkContinue, nil
}

var (
	fontTag = regexp.MustCompile(`(?i)^<font\s+color\s*=\s*["']?(#[0-9a-f]{6}|[a-z]+)["']?\s*>$`)
	colours = map[string]string{
		"info": "#2eaa4b", "comment": "#808080", "warning": "#e07b00", "red": "#d32f2f", "green": "#2eaa4b", "grey": "#808080", "gray": "#808080",
		"orange": "#e07b00", "blue": "#1565c0", "yellow": "#b8860b", "purple": "#7b1fa2", "black": "#000000",
	}
)

func renderRaw(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkSkipChildren, nil
	}
	tag := string(n.(*ast.RawHTML).Segments.Value(source))
	switch low := strings.ToLower(tag); {
	case fontTag.MatchString(tag):
		c := strings.ToLower(fontTag.FindStringSubmatch(tag)[1])
		if named, ok := colours[c]; ok {
			c = named
		} else if c[0] != '#' {
			c = "#808080"
		}
		_, _ = w.WriteString(`<span data-mx-color="` + c + `">`)
	case low == "</font>":
		_, _ = w.WriteString(`</span>`)
	case low == "<br>", low == "<br/>", low == "<br />":
		_, _ = w.WriteString(`<br>`)
	default:
		_, _ = w.WriteString(html.EscapeString(tag))
	}
	return ast.WalkSkipChildren, nil
}

func renderBlock(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	b := n.(*ast.HTMLBlock)
	text := string(b.Lines().Value(source))
	if b.HasClosure() {
		text += string(b.ClosureLine.Value(source))
	}
	_, _ = w.WriteString("<p>" + html.EscapeString(strings.TrimSpace(text)) + "</p>\n")
	return ast.WalkContinue, nil
}

// toHTML makes HTML of Markdown, without a paragraph around a single one.
func toHTML(source string) (string, error) {
	var b bytes.Buffer
	if err := markdown().Convert([]byte(source), &b); err != nil {
		return "", err
	}
	out := strings.TrimSpace(b.String())
	if inner, ok := strings.CutPrefix(out, "<p>"); ok && strings.HasSuffix(inner, "</p>") && strings.Count(out, "<p>") == 1 && !strings.Contains(strings.TrimSuffix(inner, "</p>"), "</p>") {
		out = strings.TrimSuffix(inner, "</p>")
	}
	return out, nil
}

// content makes the content of m.room.message, without its relation.
func (m *message) content(mentions []id.UserID) (map[string]any, error) {
	plain, rich := m.Text, ""
	if m.Markdown != "" {
		var err error
		if rich, err = toHTML(m.Markdown); err != nil {
			return nil, err
		}
		plain = m.Markdown
	}
	if m.Title != "" || len(mentions) > 0 {
		if rich == "" {
			rich = strings.ReplaceAll(html.EscapeString(m.Text), "\n", "<br>")
		}
	}
	if m.Title != "" {
		plain = strings.TrimSpace(m.Title + "\n\n" + plain)
		rich = strings.TrimSpace("<h4>" + html.EscapeString(m.Title) + "</h4>\n" + rich)
	}
	var pills, names []string
	for _, u := range mentions {
		names = append(names, u.Localpart())
		pills = append(pills, `<a href="`+html.EscapeString("https://matrix.to/#/"+url.PathEscape(string(u)))+`">`+html.EscapeString(u.Localpart())+`</a>`)
	}
	if m.MentionRoom && !strings.Contains(plain, "@room") {
		names = append(names, "@room")
		pills = append(pills, "@room")
	}
	if len(names) > 0 {
		plain += "\n" + strings.Join(names, " ")
		if rich != "" {
			rich += "<br>" + strings.Join(pills, " ")
		}
	}
	if m.MsgType == "" {
		m.MsgType = "m.text"
	}
	out := map[string]any{"msgtype": m.MsgType, "body": plain, "m.mentions": mentionsOf(mentions, m.MentionRoom)}
	if rich != "" {
		out["format"], out["formatted_body"] = "org.matrix.custom.html", rich
	}
	return out, nil
}

// mentionsOf is the value of m.mentions. Spec: client-server API, "User and room mentions".
func mentionsOf(users []id.UserID, room bool) map[string]any {
	out := map[string]any{}
	if len(users) > 0 {
		out["user_ids"] = users
	}
	if room {
		out["room"] = true
	}
	return out
}

// mentioned finds the users that names stand for, among the members of a room; others are left out.
func (h *Hooks) mentioned(ctx context.Context, rm *room.Room, list []string) ([]id.UserID, error) {
	var out []id.UserID
	for _, name := range list {
		name = strings.TrimSpace(name)
		local, _, _ := strings.Cut(strings.TrimPrefix(name, "@"), ":")
		candidates := []id.UserID{id.UserID(name), h.d.Accounts.UserID(strings.ToLower(local))}
		medium, address := "msisdn", strings.TrimPrefix(name, "+")
		if strings.Contains(strings.TrimPrefix(name, "@"), "@") {
			medium, address = "email", strings.ToLower(name)
		}
		for _, a := range []string{address, "86" + address} { // robots give mobile numbers without the country
			if medium == "email" && a != address {
				continue
			}
			err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
				u, found, err := tx.ThreepidUser(medium, a)
				if found {
					candidates = append(candidates, u)
				}
				return err
			})
			if err != nil && mxerr.As(err) == nil {
				return nil, err
			}
		}
		for _, u := range candidates {
			if event.ValidUserID(u) && rm.Membership(u) == room.MembershipJoin && !slices.Contains(out, u) {
				out = append(out, u)
				break
			}
		}
	}
	return out, nil
}

// keep gets a message's files, keeps them, and makes the contents of their events.
func (h *Hooks) keep(ctx context.Context, bot id.UserID, m *message) ([]map[string]any, error) {
	var out []map[string]any
	for _, a := range m.Attachments {
		if err := h.fetch(ctx, &a); err != nil {
			return nil, err
		}
		f, err := h.d.SaveFile(ctx, bot, a.Name, a.Type, a.Data)
		if err != nil {
			return nil, err
		}
		kind, _, _ := strings.Cut(f.Type, "/")
		msgType := "m.file"
		info := map[string]any{"mimetype": f.Type, "size": f.Size}
		switch {
		case f.Width > 0:
			msgType, info["w"], info["h"] = "m.image", f.Width, f.Height
		case kind == "audio" || kind == "video":
			msgType = "m." + kind
		}
		out = append(out, map[string]any{"msgtype": msgType, "body": a.Name, "filename": a.Name, "url": f.URI, "info": info, "m.mentions": map[string]any{}})
	}
	return out, nil
}

// fetch completes an attachment: gets it where only its address was given, and finds a name.
func (h *Hooks) fetch(ctx context.Context, a *attachment) error {
	limit := h.d.Config.MaxAttachment
	if a.URL != "" {
		u, err := url.Parse(a.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return badField(a.at+"/url", "must be an address that begins with https:// or http://")
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL, nil)
		if err != nil {
			return badField(a.at+"/url", "is no address")
		}
		resp, err := h.d.Client.Do(req)
		if err != nil {
			h.d.Logger.Debug("an attachment cannot be fetched", "host", u.Hostname(), "error", err)
			return badField(a.at+"/url", "cannot be fetched")
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return badField(a.at+"/url", "cannot be fetched: the answer is %d", resp.StatusCode)
		}
		if a.Data, err = io.ReadAll(io.LimitReader(resp.Body, limit+1)); err != nil {
			return badField(a.at+"/url", "cannot be fetched to its end")
		}
		if a.Type == "" {
			a.Type = resp.Header.Get("Content-Type")
		}
		if a.Name == "" {
			a.Name = path.Base(u.Path)
		}
	}
	if int64(len(a.Data)) > limit {
		return mxerr.TooLarge(fmt.Sprintf("an attachment may have %d bytes at most", limit)).With("path", a.at)
	}
	if a.Type == "" {
		a.Type = http.DetectContentType(a.Data)
	}
	a.Name = strings.Map(func(c rune) rune {
		if c < ' ' || c == '/' || c == '\\' || c == 0x7f {
			return '_'
		}
		return c
	}, strings.ToValidUTF8(a.Name, "_"))
	if a.Name == "" || a.Name == "." || len(a.Name) > 255 {
		a.Name = "file"
		if ext, _ := mime.ExtensionsByType(a.Type); len(ext) > 0 {
			a.Name += ext[0]
		}
	}
	return nil
}

// decodeBase64 reads any of the usual alphabets, and data: addresses.
func decodeBase64(s string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(s, "data:"); ok {
		_, s, _ = strings.Cut(rest, ",")
	}
	s = strings.TrimRight(strings.Join(strings.Fields(s), ""), "=")
	s = strings.NewReplacer("-", "+", "_", "/").Replace(s)
	return base64.RawStdEncoding.DecodeString(s)
}
