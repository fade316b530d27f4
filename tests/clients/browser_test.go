package clients_test

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/moothall/moothall/tests/chromium"
	"github.com/moothall/moothall/tests/process"
)

// screenshotEnv names the file that the picture of the client is written to, for the README.
const screenshotEnv = "MOOTHALL_SCREENSHOT"

// TestBrowser opens the page in web/ twice in Chromium: alice makes an encrypted room, bob joins, they write and reply.
// The page comes from another origin than the homeserver, so cross-origin access is tested along.
func TestBrowser(t *testing.T) {
	needClients(t)
	homeserver := startServer(t, "")
	dir := t.TempDir()
	run(t, time.Minute, nil, node(t), "build.mjs", dir)
	site := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(site.Close)
	address := site.URL + "/?homeserver=" + url.QueryEscape(homeserver)

	alice, bob, carol := register(t, homeserver, "alice"), register(t, homeserver, "bob"), register(t, homeserver, "carol")
	furnish(t, homeserver, alice, bob, carol)
	browser := chromium.Start(t, "", 1280, 800)
	a, b := openTab(t, browser, address), openTab(t, browser, address)

	a.do("a wrong password is refused", chromedp.SendKeys(chromedp.CSS("#user"), alice.Name), chromedp.SendKeys(chromedp.CSS("#password"), "wrong"),
		chromedp.Click(chromedp.CSS("#submit")), chromedp.WaitVisible(chromedp.CSS("#problem:not(:empty)")))
	a.signIn(alice)
	b.signIn(bob)

	a.do("make a room", chromedp.Click(chromedp.CSS("#new-room summary")), chromedp.SendKeys(chromedp.CSS("#room-name"), "Atlas 项目"),
		chromedp.SendKeys(chromedp.CSS("#room-topic"), "Launch on 12 March"), chromedp.SendKeys(chromedp.CSS("#room-invite"), bob.UserID),
		chromedp.Click(chromedp.CSS("#create")), chromedp.WaitVisible(chromedp.CSS("#title .lock")))
	b.do("accept the invitation", chromedp.Click(chromedp.CSS(`.room[data-name="Atlas 项目"]`)), chromedp.Click(chromedp.CSS("#accept")),
		chromedp.WaitVisible(chromedp.CSS("#title .lock")), chromedp.WaitVisible(chromedp.CSS("#composer")))
	a.waitText("#title", "2 members")

	b.write("早上好，Alice!")
	a.reads("早上好，Alice!")
	a.write("Good morning! The new data centre is ready: all services moved over last night.")
	b.reads("Good morning! The new data centre is ready: all services moved over last night.")
	b.write("太好了！有没有遇到什么问题？")
	a.reads("太好了！有没有遇到什么问题？")
	a.write("没有，一切顺利。Backups were checked twice.")
	b.reads("没有，一切顺利。Backups were checked twice.")
	b.reply("没有，一切顺利。Backups were checked twice.", "Wonderful, 辛苦了! I'll tell the customer this afternoon.")
	a.reads("Wonderful, 辛苦了! I'll tell the customer this afternoon.")
	a.waitText(`.message[data-body^="Wonderful"] blockquote`, "一切顺利")
	a.write("谢谢，Bob。下午三点开会见！")
	b.reads("谢谢，Bob。下午三点开会见！")
	b.do("type", chromedp.SendKeys(chromedp.CSS("#text"), "好的"))
	a.waitText("#typing", "is typing")
	a.screenshot()
	a.complain()
	b.complain()
}

// furnish fills the room list by the API, as it would be on a working day.
func furnish(t *testing.T, homeserver string, alice, bob, carol account) {
	t.Helper()
	do := func(who account, method, path string, body any) map[string]any {
		t.Helper()
		var out map[string]any
		if status := call(t, homeserver, who.AccessToken, method, "/_matrix/client/v3"+path, body, &out); status != 200 {
			t.Fatalf("%s %s answers %d: %v", method, path, status, out)
		}
		return out
	}
	for name, who := range map[string]account{"Alice Meyer": alice, "Bob Chen 陈博": bob, "林 Carol": carol} {
		do(who, "PUT", "/profile/"+who.UserID+"/displayname", map[string]string{"displayname": name})
	}
	for i, room := range []struct{ name, text string }{
		{"综合 General", "食堂今天有饺子"},
		{"Customer support", "Ticket 4711 is solved, thank you all"},
		{"设计 Design", "新的图标在这里"},
	} {
		id := do(carol, "POST", "/createRoom", map[string]any{"preset": "public_chat", "name": room.name})["room_id"].(string)
		do(alice, "POST", "/join/"+url.PathEscape(id), map[string]any{})
		do(carol, "PUT", fmt.Sprintf("/rooms/%s/send/m.room.message/t%d", url.PathEscape(id), i),
			map[string]string{"msgtype": "m.text", "body": room.text})
	}
}

// tab is one page with what it wrote to its console.
type tab struct {
	t       *testing.T
	ctx     context.Context
	console process.Output
}

func openTab(t *testing.T, browser context.Context, address string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	p := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, func(ev any) {
		if thrown, ok := ev.(*runtime.EventExceptionThrown); ok {
			_, _ = fmt.Fprintf(&p.console, "%+v\n", thrown.ExceptionDetails)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(address), chromedp.WaitVisible(chromedp.CSS("#user"))); err != nil {
		t.Fatalf("open %s: %v", address, err)
	}
	return p
}

// do runs actions, within a time that no step should need.
func (p *tab) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	start := time.Now()
	// typing goes to the tab in front
	if _, err := chromedp.Call(p.ctx, page.BringToFront, cdp.Empty{}); err != nil {
		p.t.Fatal(err)
	}
	chromium.Do(p.ctx, p.t, what, actions...)
	p.t.Logf("%5.1f s  %s", time.Since(start).Seconds(), what)
}

func (p *tab) signIn(a account) {
	p.t.Helper()
	p.do("sign in as "+a.Name, chromedp.SetValue(chromedp.CSS("#user"), a.Name), chromedp.SetValue(chromedp.CSS("#password"), a.Password),
		chromedp.Click(chromedp.CSS("#submit")), chromedp.WaitVisible(chromedp.CSS("#chat")), chromedp.WaitVisible(chromedp.CSS("#me b")))
}

func (p *tab) write(text string) {
	p.t.Helper()
	p.do("write «"+text+"»", chromedp.SendKeys(chromedp.CSS("#text"), text), chromedp.Click(chromedp.CSS("#send")), chromedp.WaitVisible(chromedp.CSS(sent(text))))
}

func (p *tab) reads(text string) {
	p.t.Helper()
	p.do("read «"+text+"»", chromedp.WaitVisible(chromedp.CSS(sent(text))))
}

func (p *tab) reply(to, text string) {
	p.t.Helper()
	p.do("reply «"+text+"»", chromedp.Click(chromedp.CSS(sent(to)+" .reply")), chromedp.WaitVisible(chromedp.CSS("#replying")),
		chromedp.SendKeys(chromedp.CSS("#text"), text), chromedp.Click(chromedp.CSS("#send")), chromedp.WaitVisible(chromedp.CSS(sent(text)+" blockquote")))
}

// sent selects a message that the server has taken.
func sent(text string) string {
	return fmt.Sprintf(`.message[data-body="%s"][data-id]`, strings.ReplaceAll(text, `"`, `\"`))
}

// waitText waits until an element's text has a part.
func (p *tab) waitText(selector, part string) {
	p.t.Helper()
	p.do(fmt.Sprintf("see «%s»", part),
		ignore(chromedp.Poll[bool](fmt.Sprintf("document.querySelector(%q)?.textContent.includes(%q) ?? false", selector, part),
			chromedp.WithPollingInterval(50*time.Millisecond))))
}

// ignore drops an action's result.
func ignore[T any](a chromedp.Action[T]) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := a(ctx, t)
		return err
	})
}

// screenshot takes the picture, and keeps it where screenshotEnv says.
func (p *tab) screenshot() {
	p.t.Helper()
	p.do("set the window", chromedp.EmulateViewport(1280, 800, chromedp.EmulateScale(1.5)))
	picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	config, err := png.DecodeConfig(bytes.NewReader(picture))
	if err != nil || config.Width != 1920 || config.Height != 1200 {
		p.t.Errorf("the picture is %d × %d: %v", config.Width, config.Height, err)
	}
	if file := os.Getenv(screenshotEnv); file != "" {
		if err := os.WriteFile(file, picture, 0o644); err != nil {
			p.t.Error(err)
		}
	}
}

// complain fails the test for errors that no one caught in the page.
func (p *tab) complain() {
	p.t.Helper()
	if text := p.console.String(); text != "" {
		p.t.Errorf("the page threw: %s", text)
	}
}
