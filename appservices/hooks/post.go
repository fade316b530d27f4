package hooks

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// sent is what became of a message.
type sent struct {
	RoomID  id.RoomID    `json:"room_id"`
	EventID id.EventID   `json:"event_id"`
	More    []id.EventID `json:"more,omitzero"` // of attachments
}

// answer is what a post is answered with.
type answer struct {
	sent
	Events []sent `json:"events,omitzero"` // of batches
}

// post handles POST /_moothall/hooks/v1/{hook} and POST /_moothall/hooks/v1/{hook}/{secret}.
func (h *Hooks) post(w http.ResponseWriter, r *http.Request) error {
	name := web.PathParam(r, "hook")
	if web.PathParam(r, "secret") != "" {
		r.URL.Path = base + name + "/…" // what is logged from here on holds no secret
	}
	ctx := r.Context()
	var hk store.Hook
	var found bool
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		hk, found, err = tx.Hook(name)
		return err
	})
	if err != nil && mxerr.As(err) == nil {
		return err
	}
	if err != nil || !found || hk.Revoked != 0 {
		return h.refuse(r, "unknown", "no such hook")
	}
	f := formats[hk.Format]
	if f == nil {
		return fmt.Errorf("hook %s has the unknown format %q", name, hk.Format)
	}
	out, err := h.take(r, &hk, f)
	if e := mxerr.As(err); e != nil && f.fail != nil {
		return web.WriteJSON(w, f.fail(e))
	}
	if err != nil {
		return err
	}
	if f.done != nil {
		return web.WriteJSON(w, f.done)
	}
	return web.WriteJSON(w, out)
}

// refuse is the answer to a request that proves nothing: alike for hooks that are not there.
func (h *Hooks) refuse(r *http.Request, target, why string) error {
	ctx := r.Context()
	e := audit.Entry{Action: "hook.refused", Target: target, Reason: why}
	e.Kind = audit.KindAppService
	if err := h.d.Audit.Refusal(ctx, e); err != nil {
		return err
	}
	if after := h.wrong.Allow(web.RateLogin, web.ClientIP(r).String()); after > 0 {
		return mxerr.LimitExceeded(after)
	}
	return mxerr.New(http.StatusUnauthorized, "M_UNAUTHORIZED", "there is no such hook, or the secret, signature or time of the request is wrong")
}

// readBody reads the bytes of a post.
func (h *Hooks) readBody(r *http.Request) ([]byte, error) {
	limit := web.MaxBody + 2*h.d.Config.MaxAttachment
	if r.ContentLength > limit {
		return nil, mxerr.TooLarge(fmt.Sprintf("the body may have at most %d bytes", limit))
	}
	if r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case int64(len(b)) > limit:
		return nil, mxerr.TooLarge(fmt.Sprintf("the body may have at most %d bytes", limit))
	case err != nil:
		return nil, mxerr.NotJSON("the body could not be read to its end")
	}
	return b, nil
}

// take authenticates a post and sends what it says.
func (h *Hooks) take(r *http.Request, hk *store.Hook, f *format) (answer, error) {
	var o Options
	if err := json.Unmarshal(hk.Options, &o); err != nil {
		return answer{}, fmt.Errorf("the options of hook %s: %w", hk.ID, err)
	}
	ctx, now := r.Context(), h.d.Clock()
	if !mayCome(o.Addresses, web.ClientIP(r)) {
		return answer{}, h.refuse(r, hk.ID, "address")
	}
	proven := showsToken(r, hk, now.UnixMilli())
	if !proven && hk.Auth == AuthToken {
		return answer{}, h.refuse(r, hk.ID, "secret")
	}
	body, err := h.readBody(r)
	if err != nil {
		return answer{}, err
	}
	if !proven && !signed(r, body, string(hk.Secret), now) {
		return answer{}, h.refuse(r, hk.ID, "signature")
	}
	if after := h.allow(hk.ID, o.PerMinute); after > 0 {
		e := audit.Entry{Action: "hook.limited", Target: hk.ID, Reason: "M_LIMIT_EXCEEDED"}
		e.Kind = audit.KindAppService
		if err := h.d.Audit.Refusal(ctx, e); err != nil {
			return answer{}, err
		}
		return answer{}, mxerr.LimitExceeded(after)
	}
	messages, err := h.messages(&input{body: body, header: r.Header}, f, &o)
	if err != nil {
		return answer{}, err
	}
	ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindAppService, Session: "hook:" + hk.ID})
	var out answer
	for i := range messages {
		s, err := h.send(ctx, hk, &messages[i])
		if err != nil {
			return answer{}, err
		}
		if i == 0 {
			out.sent = s
		}
		out.Events = append(out.Events, s)
	}
	if len(out.Events) == 1 {
		out.Events = nil
	}
	if now.UnixMilli()-hk.Used > (10 * time.Minute).Milliseconds() {
		err = h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.UsedHook(hk.ID, now.UnixMilli()) })
	}
	return out, err
}

// messages reads what a post says: in the hook's format, and where it has templates as these say.
func (h *Hooks) messages(in *input, f *format, o *Options) ([]message, error) {
	var list []message
	var err error
	if o.Template == "" {
		list, err = f.parse(in)
	} else {
		list, err = h.fromTemplate(in, o)
	}
	if err != nil {
		return nil, err
	}
	idempotency := idempotencyOf(in.header)
	for i := range list {
		m := &list[i]
		if o.Template == "" {
			if err := o.keys(m, in.body); err != nil {
				return nil, err
			}
		}
		if m.Idempotency == "" && idempotency != "" {
			m.Idempotency = idempotency
			if i > 0 {
				m.Idempotency = fmt.Sprintf("%s/%d", idempotency, i)
			}
		}
		if m.MsgType == "" {
			m.MsgType = o.MsgType
		}
		if err := m.check(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// idempotencyOf is what makes a repeated post known: the header of that name, and the ids that senders give their deliveries.
func idempotencyOf(h http.Header) string {
	for _, name := range []string{"Idempotency-Key", "Webhook-Id", "X-Github-Delivery"} {
		if v := h.Get(name); v != "" {
			return v
		}
	}
	return ""
}

// fromTemplate makes a message of any JSON.
func (h *Hooks) fromTemplate(in *input, o *Options) ([]message, error) {
	if _, err := decode[jsontext.Value](in.body); err != nil {
		return nil, err
	}
	text, err := fill("template", o.Template, in.body)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, nil // the template's way to say that this is of no interest
	}
	list := []message{{Markdown: text}}
	return list, o.keys(&list[0], in.body)
}

// keys fills in what templates say beside the text.
func (o *Options) keys(m *message, body []byte) error {
	for _, t := range []struct {
		field, text string
		to          *string
	}{{"key", o.Key, &m.Key}, {"thread", o.Thread, &m.Thread}, {"idempotency", o.Idempotency, &m.Idempotency}} {
		s, err := fill(t.field, t.text, body)
		if err != nil {
			return err
		}
		if s != "" {
			*t.to = s
		}
	}
	users, err := fill("mentions", o.Mentions, body)
	if err != nil {
		return err
	}
	for _, u := range strings.FieldsFunc(users, func(c rune) bool { return c == ' ' || c == ',' || c == '\n' || c == '\t' }) {
		if u == "@room" {
			m.MentionRoom = true
		} else {
			m.Mentions = append(m.Mentions, u)
		}
	}
	return nil
}

// test sends a message of the server's own through a hook.
func (h *Hooks) test(ctx context.Context, hk *store.Hook) (sent, error) {
	return h.send(ctx, hk, &message{Markdown: "This is a test of the hook **" + escapeMarkdown(hk.ID) + "**. 这是一条测试消息。"})
}
