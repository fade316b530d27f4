package roomclass

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"html"
	"log/slog"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// NoticeDeps is what a Notice works with.
type NoticeDeps struct {
	Store  *store.Store
	Logger *slog.Logger
	// Send writes a message to a user; one with the same transaction id is written once.
	Send func(ctx context.Context, user id.UserID, text, html, txn string) error
	// Archived says that what is said here is archived.
	Archived  bool
	Forbidden []Class
}

// Notice tells every user once what is archived and which rooms are not encrypted, and again when that changes.
type Notice struct{ NoticeDeps }

const (
	tellEvery = 15 * time.Second
	tellChunk = 50
	tellPause = 50 * time.Millisecond // each may make a room
)

var classNames = map[Class][2]string{
	Corporate: {"corporate", "企业"}, Confidential: {"confidential", "机密"}, Private: {"private", "私人"}, External: {"external", "外部"},
}

// Text is the notice, "" where there is nothing to tell.
func (n *Notice) Text() string {
	var zh, en []string
	if n.Archived {
		zh = append(zh, "本服务器的消息由贵组织存档：包括编辑前的版本、已删除的消息以及房间成员记录。合规人员须说明理由后方可查阅，且每次查阅都会被记录。")
		en = append(en, "Messages on this server are archived by your organisation: earlier versions and deleted messages too, and who was in which room. "+
			"Compliance officers may read them for a stated reason, and each time they do is on record.")
	}
	if len(n.Forbidden) > 0 {
		var names [2][]string
		for _, c := range n.Forbidden {
			names[0], names[1] = append(names[0], classNames[c][0]), append(names[1], classNames[c][1])
		}
		zh = append(zh, "以下类别的房间不使用端到端加密："+strings.Join(names[1], "、")+"。")
		en = append(en, "Rooms of these kinds are not encrypted end to end: "+strings.Join(names[0], ", ")+".")
	}
	if len(zh) == 0 {
		return ""
	}
	return strings.Join(zh, "") + "\n\n" + strings.Join(en, " ")
}

// version changes with the text.
func version(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:8])
}

// Run tells users, on one process at a time, until ctx ends.
func (n *Notice) Run(ctx context.Context) error {
	if n.Text() == "" {
		return nil
	}
	return n.Store.RunLeased(ctx, "compliance-notice", func(ctx context.Context) error {
		for {
			if err := n.Tell(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(tellEvery):
			}
		}
	})
}

// Tell writes to all who were not told yet. One who cannot be told is tried again another time.
func (n *Notice) Tell(ctx context.Context) error {
	text := n.Text()
	v := version(text)
	after := id.UserID("")
	for {
		var users []id.UserID
		err := n.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			users, err = tx.UsersNotTold(v, after, tellChunk)
			return err
		})
		if err != nil || len(users) == 0 {
			return err
		}
		for _, u := range users {
			after = u
			err := n.Send(ctx, u, text, "<p>"+strings.ReplaceAll(html.EscapeString(text), "\n\n", "</p><p>")+"</p>", "compliance/"+v)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, ErrNobody) {
				err = nil
			}
			if err != nil {
				n.Logger.Warn("a user cannot be told what is archived", "user_id", u, "error", err)
				continue
			}
			if err := n.Store.Write(ctx, func(tx *store.Tx) error { return tx.ToldUser(u, v, time.Now().UnixMilli()) }); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(tellPause):
			}
		}
	}
}

// ErrNobody is what Send answers for an account that reads no notices.
var ErrNobody = errors.New("nobody reads notices there")
