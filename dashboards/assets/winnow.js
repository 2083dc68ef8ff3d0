// What happens in the browser alone: the address bar and the controls follow each other, and the grid's own drawing.
const CONTROLS = ["recipe", "find", "state", "tag", "since", "until", "show", "y", "x", "within"];
const DEFAULTS = {y: "perplexity", x: "bytes", within: "5"};
const LISTS = ["recipe", "state"];

function read(search, key) {
    const text = new URLSearchParams(search).get(key) || DEFAULTS[key] || "";
    return LISTS.includes(key) ? text.split(",").filter(Boolean) : text || null;
}

function write(search, key, value) {
    const found = new URLSearchParams(search);
    const text = Array.isArray(value) ? value.join(",") : value === null || value === undefined ? "" : String(value);
    text === "" || text === DEFAULTS[key] ? found.delete(key) : found.set(key, text);
    const query = [...found].map(([name, told]) => `${name}=${encodeURIComponent(told).replace(/%(2C|3D|3A|2F)/g, decodeURIComponent)}`);
    return query.length ? `?${query.join("&")}` : "";
}

const PREFIX = JSON.parse(document.getElementById("_dash-config").textContent).requests_pathname_prefix;
const AWAY = "This dashboard's server does not answer; what stands here is as it was, and it is asked again.";

let ticked = -Infinity;  // when a person did something in the grid; what it says a second later is not of that
for (const kind of ["click", "keydown"]) document.addEventListener(kind, event => {
    if (event.target.closest?.(".ag-root") && (kind === "click" || event.key === " ")) ticked = performance.now();
}, true);

const same = (left, right) => JSON.stringify(left || null) === JSON.stringify(right || null);

// A list drops a value that it does not offer: so it offers what the address names, whatever is read so far.
function offered(choices, key, search) {
    const there = new Set(choices[key].map(one => one.value));
    const more = [read(search, key) || []].flat().filter(value => !there.has(value));
    return [...choices[key], ...more.map(value => ({label: value, value}))];
}

// The rows are others, or the address is, by Back or a link: the ticks follow it.
function follow(ids, rows, selected, search) {
    if (ids.length) {
        const there = new Set((rows[0] || []).map(row => row.id)), now = selected[0]?.ids || (selected[0] || []).map(row => row.id);
        const wanted = (read(search, ids[0].grid === "models" ? "pick" : "run") || "").split(",").filter(run => there.has(run));
        const alike = wanted.length === now.length && wanted.every(run => now.includes(run));
        if (!alike) window.dash_clientside.set_props(ids[0], {selectedRows: {ids: wanted}});
    }
    return window.dash_clientside.no_update;
}

window.dash_clientside = Object.assign({}, window.dash_clientside, {
    winnow: {
        async poll(_, seen, away) {
            const none = window.dash_clientside.no_update;
            if (document.hidden) return [none, none];
            try {
                const told = await fetch(`${PREFIX}version`, {cache: "no-store", signal: AbortSignal.timeout(10000)});
                if (!told.ok) throw new Error(told.status);
                const version = Number(await told.text());
                if (away) return [-Date.now(), ""];  // what was asked for meanwhile is asked for again
                return [version === seen ? none : version, none];
            } catch {
                return [none, away ? none : AWAY];
            }
        },
        choose(search, ...values) {
            const choices = values.pop(), moved = window.dash_clientside.callback_context.triggered.map(one => one.prop_id);
            const follows = !moved.length || moved.includes("url.search");
            let query = search;
            CONTROLS.forEach((key, place) => {
                const told = read(search, key), empty = !told?.length && !values[place]?.length;
                if (moved.includes(`c-${key}.value`)) query = write(query, key, values[place]);
                else if (follows && !empty && !same(told, values[place])) {
                    const options = key in choices ? {options: offered(choices, key, search)} : {};
                    window.dash_clientside.set_props(`c-${key}`, {value: told, ...options});
                }
            });
            return query === search ? window.dash_clientside.no_update : query;
        },
        offer(choices, search) {
            for (const key in choices) window.dash_clientside.set_props(`c-${key}`, {options: offered(choices, key, search)});
        },
        settle(drawn, path, search, ids, rows, selected) {
            if (drawn !== `${path}${search}`) return -Date.now();  // overtaken by a later answer, and here after it
            return performance.now() - ticked > 1000 ? follow(ids, rows, selected, search) : window.dash_clientside.no_update;
        },
        open(click, path, search) {
            const none = window.dash_clientside.no_update;
            const run = click?.points?.[0]?.customdata;
            return run ? [`${path.replace(/\/$/, "")}/model`, write(search, "model", run)] : [none, none];
        },
        pick(selected, ids, rows, search) {
            const none = window.dash_clientside.no_update;
            if (!ids.length || !Array.isArray(selected[0])) return none;  // as the page set them
            const key = ids[0].grid === "models" ? "pick" : "run";
            const shown = new Set(selected[0].map(row => row.id)), there = new Set((rows[0] || []).map(row => row.id));
            const runs = (read(search, key) || "").split(",").filter(Boolean);
            if (performance.now() - ticked > 1000) return follow(ids, rows, selected, search);
            const kept = runs.filter(run => shown.has(run) || !there.has(run));  // what a filter hides stays picked
            shown.forEach(run => kept.includes(run) || kept.push(run));
            const query = write(search, key, key === "pick" ? kept.slice(-6) : kept);
            return query === search ? none : query;
        },
        columns(values, ids, search) {
            const none = window.dash_clientside.no_update;
            if (!values.length || values[0].join(",") === ids[0].told) return none;  // as the page set them
            const query = write(search, "columns", values[0]);
            return query === search ? none : query;
        },
        theme(clicks) {
            const root = document.documentElement, order = ["", "light", "dark"];
            let now = localStorage.getItem("winnow-theme") || "";
            if (clicks) localStorage.setItem("winnow-theme", now = order[(order.indexOf(now) + 1) % 3]);
            now ? root.setAttribute("data-theme", now) : root.removeAttribute("data-theme");
            return `now ${now || "as the system has it"}; press for another`;
        },
    },
});

const functions = window.dashAgGridFunctions = window.dashAgGridFunctions || {};
functions.winnowTheme = quartz => quartz.withParams({
    backgroundColor: "var(--ground)", foregroundColor: "var(--ink)", headerBackgroundColor: "var(--raised)",
    borderColor: "var(--line)", accentColor: "var(--accent)", browserColorScheme: "inherit", fontFamily: "inherit", fontSize: 13,
    headerTextColor: "var(--ink)", rowHoverColor: "var(--raised)", selectedRowBackgroundColor: "var(--picked)", spacing: 6,
});
functions.winnowNumber = (value, unit, broken) => {
    if (value === null || value === undefined) return broken || "";
    const scaled = units => { let at = 0; while (Math.abs(value) >= 1000 && at < units.length - 1) { value /= 1000; at++; }
        return `${at ? value.toFixed(2) : value.toFixed(0)} ${units[at]}`; };
    if (unit === "B") return scaled(["B", "kB", "MB", "GB", "TB"]);
    if (unit === "share") return `${value && Math.abs(value) < 0.0005 ? Number((100 * value).toPrecision(2)) : (100 * value).toFixed(1)} %`;
    if (unit === "s") return value < 1 ? `${(1000 * value).toPrecision(3)} ms` : value < 120 ? `${value.toFixed(1)} s`
        : value < 600 ? `${(value / 60).toFixed(1)} min` : value < 7200 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
    if (unit === "FLOP") return value.toExponential(2);
    const text = Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : Number.isInteger(value) ? String(value)
        : Math.abs(value) < 1e-4 ? value.toExponential(3) : value.toPrecision(4);
    return unit === "token/s" ? `${text} tok/s` : text;
};

const components = window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {};
const make = (...given) => React.createElement(...given);
components.WinnowLink = props => make("a", {href: props.data.href}, props.value);
components.WinnowState = props => make("span", {className: `pill ${props.value}`}, `${props.data.sign} ${props.value}`);
components.WinnowLinks = props => make("span", {}, ...(props.data.pages || []).map(one =>
    make("a", {href: one.href, target: "_blank", rel: "noopener", className: "out", key: one.name}, `${one.name} ↗`)));

// The grid's script comes beside the others: whoever asks for the table before it is there waits for it.
const grid = document.querySelector("script[src*='/dash_ag_grid']");
if (!window.dash_ag_grid) {
    const Waiting = props => {
        const [, again] = React.useState(0);
        React.useEffect(() => grid.addEventListener("load", () => again(1)), []);
        const Grid = window.dash_ag_grid.AgGrid;
        return Grid === Waiting ? null : make(Grid, props);
    };
    window.dash_ag_grid = {AgGrid: Waiting};
}

document.documentElement.dataset.theme = localStorage.getItem("winnow-theme") || "";
