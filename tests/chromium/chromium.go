// Package chromium drives a real browser in tests.
package chromium

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// picturesEnv names a folder for pictures of the pages, for people to look at.
const picturesEnv = "MOOTHALL_TEST_SCREENSHOTS"

// limit is what no step should need, not even on a machine with much else to do.
const limit = 60 * time.Second

// Start starts Chromium with an empty profile and a window of this size; it ends with the test. Its language is the machine's where
// lang is "". Without Chromium the test is skipped, and fails in CI.
func Start(t testing.TB, lang string, width, height int) context.Context {
	t.Helper()
	binary, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: run ./scripts/test, which installs it", err)
		}
		t.Skip("there is no Chromium: ./scripts/test installs it")
	}
	// the default options keep a tab in the background from being slowed down: it must go on with what it does
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(binary), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(width, height),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("hide-scrollbars", true))
	if lang != "" {
		options = append(options, chromedp.Flag("lang", lang))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // waits until the browser has closed
			t.Errorf("close Chromium: %v", err)
		}
	})
	return ctx
}

// drawnAnew says that a page has replaced an element between a look for it and what was to be done with it, as pages that draw
// themselves do at any time: nothing was done then.
func drawnAnew(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Could not find node with given id")
}

// Do runs actions in a tab. If they fail or hang the test ends with what the page shows.
func Do(ctx context.Context, t testing.TB, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	inTime, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	for _, a := range actions {
		for err = chromedp.Do(inTime, a); drawnAnew(err) && inTime.Err() == nil; err = chromedp.Do(inTime, a) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		look, done := context.WithTimeout(ctx, 5*time.Second)
		defer done()
		text, _ := chromedp.Run(look, chromedp.Text(chromedp.CSS("body"))) // only shown
		t.Fatalf("%s: %v\nthe page shows: %s", what, err, text)
	}
}

// Text is the text of an element.
func Text(ctx context.Context, t testing.TB, sel string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(sel)))
	for drawnAnew(err) && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		text, err = chromedp.Run(ctx, chromedp.Text(chromedp.CSS(sel)))
	}
	if err != nil {
		t.Fatalf("%s: %v", sel, err)
	}
	return text
}

// Picture keeps what a tab shows where somebody wants pictures.
func Picture(ctx context.Context, t testing.TB, name string) {
	t.Helper()
	dir := os.Getenv(picturesEnv)
	if dir == "" {
		return
	}
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644) //nolint:gosec // a picture of a test is no secret
	}
	if err != nil {
		t.Errorf("picture %s: %v", name, err)
	}
}
