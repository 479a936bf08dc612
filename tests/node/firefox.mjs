// The page's main path in the machine's Firefox: `node firefox.mjs FIREFOX URL RECORDING`; prints what it saw as JSON.

import puppeteer from "puppeteer-core";

const [executablePath, url, recording] = process.argv.slice(2);
/** As patient as the tests in Python. */
const timeout = 240_000;
const SENTENCES = "#sentences .words";

const browser = await puppeteer.launch({
  browser: "firefox",
  executablePath,
  headless: true,
  protocolTimeout: timeout,
  extraPrefsFirefox: { "media.navigator.streams.fake": true, "media.navigator.permission.disabled": true },
});
const seen = { faults: [] };
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(timeout);
  await page.setViewport({ width: 1280, height: 900 });
  page.on("pageerror", (error) => seen.faults.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") seen.faults.push(message.text());
  });
  const text = () => page.$$eval(SENTENCES, (all) => all.map((one) => one.textContent).join(" "));

  await page.goto(url);
  const [chooser] = await Promise.all([page.waitForFileChooser(), page.click("#choose")]);
  await chooser.accept([recording]);
  await page.waitForSelector("#export-open", { visible: true });
  seen.transcript = await text();

  await page.click(`${SENTENCES} [data-word]`, { count: 2 });
  await page.waitForSelector(".sentence-field");
  await page.keyboard.type("Well");
  await page.keyboard.press("Enter");
  await page.waitForFunction(
    (sentences) => document.querySelector(sentences)?.textContent.startsWith("Well"),
    {},
    SENTENCES,
  );
  await page.reload();
  await (await page.waitForSelector("#history-list button")).click();
  await page.waitForSelector("#export-open", { visible: true });
  seen.afterReload = await text();

  await page.click("#record");
  await page.waitForFunction(() => document.querySelector("#record-time")?.textContent.includes("0:02"));
  await page.click("#record-discard");

  await page.setViewport({ width: 390, height: 844 });
  seen.tooWide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
