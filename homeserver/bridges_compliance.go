package homeserver

import (
	"context"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/archive"
	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/compliance/roomclass"
	"github.com/moothall/moothall/console"
	"github.com/moothall/moothall/homeserver/room"
)

// compliance are the parts about the archive, its officers, and encryption.
type compliance struct {
	archive *archive.Archive // nil: switched off
	classes *roomclass.Classes
	notice  *roomclass.Notice
	console *console.Console
}

// buildCompliance makes the parts; s.rooms and s.notices are there.
func (s *Server) buildCompliance() error {
	policy, err := s.cfg.roomClassConfig()
	if err != nil {
		return fmt.Errorf("compliance.room_classes: %w", err)
	}
	s.classes = roomclass.New(roomclass.Deps{Store: s.store, Accounts: s.accounts, Logger: s.log, Config: policy})
	if s.cfg.Compliance.Archive {
		s.archive = archive.New(archive.Deps{Store: s.store, Audit: s.audit, Logger: s.log, ServerName: s.cfg.ServerName, Key: s.key})
	}
	s.notice = &roomclass.Notice{NoticeDeps: roomclass.NoticeDeps{
		Store: s.store, Logger: s.log, Archived: s.archive != nil, Forbidden: policy.Forbidden, Send: s.tellUser,
	}}
	return nil
}

// tellUser sends a notice; the account that notices come from gets none.
func (s *Server) tellUser(ctx context.Context, user id.UserID, text, html, txn string) error {
	service, err := s.groups.Service(ctx)
	if err != nil {
		return err
	}
	if user == service {
		return roomclass.ErrNobody
	}
	_, err = s.notices.Text(ctx, user, text, html, txn)
	return err
}

// newRoomPolicy looks at rooms that are about to be made.
func (s *Server) newRoomPolicy(ctx context.Context, creator id.UserID, drafts []room.Draft, meta room.RoomMeta) ([]room.Draft, func(context.Context, id.RoomID), error) {
	return s.classes.NewRoom(ctx, creator, drafts, meta)
}

// sendPolicy looks at events that are about to be sent.
func (s *Server) sendPolicy(ctx context.Context, r *room.Room, d *room.Draft) error {
	return s.classes.Check(ctx, r, d)
}

// runCompliance archives and tells users of it.
func (s *Server) runCompliance(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.archive == nil {
		if err := archive.Stop(ctx, s.store); err != nil {
			s.log.Warn("switch the archive off", "error", err)
		}
	} else {
		g.Go(func() error { return s.archive.Run(ctx) })
	}
	if s.cfg.Compliance.Notice {
		g.Go(func() error { return s.notice.Run(ctx) })
	}
	return g.Wait()
}

// WithArchive opens the archive for a command that runs beside the server or without it. Looking at it is noted in the audit log.
func WithArchive(ctx context.Context, cfg Config, log *slog.Logger, what string, fn func(context.Context, *archive.Archive) error) error {
	return withAuditLog(ctx, &cfg, log, func(ctx context.Context, o opened) error {
		if err := o.audit.Record(ctx, audit.Entry{Action: "archive." + what}); err != nil {
			return fmt.Errorf("the audit log cannot be written: %w", err)
		}
		return fn(ctx, archive.New(archive.Deps{Store: o.store, Audit: o.audit, Logger: log, ServerName: cfg.ServerName, Key: o.key}))
	})
}
